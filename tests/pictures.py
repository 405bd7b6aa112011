"""Synthetic photographs for tests: smooth shapes with texture, and their files."""

from io import BytesIO

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth waves, edges and a little grain: what a photograph asks of a codec and of a filter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [110 + 60 * np.sin(x / a + y / b) + 40 * np.sin(y / c) for a, b, c in rng.uniform(15, 60, (3, 3))]
    rgb = np.stack(waves, -1) + 25 * ((x // 97 + y // 61) % 2)[..., None] + rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of uint8 arrays, in dB."""
    mean = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return float("inf") if mean == 0 else float(10 * np.log10(255**2 / mean))
