"""Large photographs for benchmarks: real ones of the demo's cache laid side by side at their own sharpness.

An enlarged photograph would be smooth, and so too easy for a codec; a mosaic costs what a photograph of its size
does. Where the cache is empty, waves, edges and grain made with NumPy take their place.
"""

import io
import os
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

LEAST_SIDE_PX = 1024
QUALITY = 95


def found() -> list[Path]:
    """The real photographs of INFD_CACHE or ~/.cache/infd, as `make demo` leaves them: JPEGs, in a fixed order."""
    root = Path(os.environ.get("INFD_CACHE") or Path.home() / ".cache" / "infd") / "photos"
    files = (path for path in sorted(root.glob("**/*.jpg")) if path.stat().st_size > 100_000)
    return [path for path in files if min(Image.open(path).size) >= LEAST_SIDE_PX]


def origin() -> str:
    """What the benchmarks' photographs are made of, in words."""
    count = len(found())
    if count:
        return f"mosaics of {count} real photographs at their own sharpness"
    return "synthetic photographs (waves, edges, grain): no real ones in the cache, `make demo` gets some"


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """A photo of those sides; another seed, another photo, as far as there are real ones."""
    sources = found()
    canvas = Image.new("RGB", (width, height))
    pictures = _opened(sources[seed % len(sources):] + sources[:seed % len(sources)]) if sources else _synthetic(seed)
    y = 0
    while y < height:
        x, row_height = 0, height - y
        while x < width:
            picture = next(pictures)
            canvas.paste(picture, (x, y))
            row_height = min(row_height, picture.height)  # the next row covers what hangs below
            x += picture.width
        y += row_height
    return canvas


def jpeg(image: Image.Image) -> bytes:
    """A file as cameras write it: quality 95, 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def renamed(data: bytes, number: int) -> bytes:
    """The same JPEG as another file: a comment after its first marker holds the number."""
    return data[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + data[2:]


def _opened(paths: list[Path]) -> Iterator[Image.Image]:
    for path in cycle(paths):
        with Image.open(path) as image:
            yield image.convert("RGB")


def _synthetic(seed: int) -> Iterator[Image.Image]:
    side = 1500
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    for number in range(seed * 1000, (seed + 1) * 1000):
        rng = np.random.default_rng(number)
        waves = [110 + 60 * np.sin(x / a + y / b) + 40 * np.sin(y / c) for a, b, c in rng.uniform(15, 60, (3, 3))]
        edges = 25 * ((x // rng.integers(50, 200) + y // rng.integers(50, 200)) % 2)
        rgb = np.stack(waves, -1) + edges[..., None] + rng.normal(0, 3, (side, side, 3))
        yield Image.fromarray(rgb.clip(0, 255).astype(np.uint8))
