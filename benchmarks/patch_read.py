"""One training sample (lowres 256, one 256 px patch at uniform r) from photographs of several sizes, on one core.

The reference way is that of the published sampler: decode the JPEG, Lanczos to 256 and to r, crop. Both sides use
the same PIL in the same run, on the same synthetic photograph (gradients, discs and noise).
"""

import io
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from infd.config import IngestConfig
from infd.data.snapshot import write_dataset

SIDES = (1024, 2048, 4096)
SAMPLES = 40
PATCH = LOWRES = 256


def photograph(side: int) -> bytes:
    """A JPEG of quality 95 with structure at all scales."""
    generator = np.random.default_rng(side)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    waves = sum(np.sin(2 * np.pi * f * (x * np.cos(f) + y * np.sin(f))) for f in (1, 7, 31, 97)) * 20
    image = 128 + waves[..., None] * np.array([1, 0.8, 0.6]) + generator.normal(0, 6, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def reference(data: bytes, r: int, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    lowres = image.resize((LOWRES, LOWRES), Image.Resampling.LANCZOS)
    patch = image.resize((r, r), Image.Resampling.LANCZOS).crop((x, y, x + PATCH, y + PATCH))
    return np.asarray(lowres), np.asarray(patch)


def milliseconds(call: Callable[[int, int, int], object], side: int) -> float:
    """Mean over SAMPLES crops, the same ones for every caller."""
    generator = np.random.default_rng(0)
    crops = []
    for _ in range(SAMPLES):
        r = int(generator.integers(PATCH, side + 1))
        crops.append((r, *(int(value) for value in generator.integers(0, r - PATCH + 1, 2))))
    call(*crops[0])
    begun = time.perf_counter()
    for crop in crops:
        call(*crop)
    return 1000 * (time.perf_counter() - begun) / SAMPLES


def main() -> None:
    print("| native side | reference, ms | ours, ms | ratio |\n|---|---|---|---|")
    for side in SIDES:
        data = photograph(side)
        with tempfile.TemporaryDirectory() as folder:
            dataset = write_dataset([("photo.jpg", data)], folder, IngestConfig(val_fraction=0))

            def ours(r: int, y: int, x: int, dataset=dataset) -> None:  # noqa: ANN001
                dataset.lowres(0)
                dataset.patch(0, r=r, y=y, x=x, size=PATCH)

            slow = milliseconds(lambda r, y, x, data=data: reference(data, r, y, x), side)
            fast = milliseconds(ours, side)
        print(f"| {side} | {slow:.1f} | {fast:.2f} | {slow / fast:.1f} x |")


if __name__ == "__main__":
    main()
