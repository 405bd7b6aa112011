"""The published sampler's way to a training sample: decode the whole JPEG, Lanczos to 256 and to r, crop.

Needs PIL and NumPy alone, so that it also runs as a file in an environment with plain Pillow:
python reference_way.py PHOTO CROPS.json prints the milliseconds of each crop as JSON.
"""

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

PATCH_PX = LOWRES_PX = 256


def sample(data: bytes, r: int, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
    """(lowres, patch) of a square photo, uint8 (256, 256, 3) both."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    lowres = image.resize((LOWRES_PX, LOWRES_PX), Image.Resampling.LANCZOS)
    patch = image.resize((r, r), Image.Resampling.LANCZOS).crop((x, y, x + PATCH_PX, y + PATCH_PX))
    return np.asarray(lowres), np.asarray(patch)


def main(photo: str, crops: str) -> None:
    data = Path(photo).read_bytes()
    taken = []
    for crop in json.loads(crops):
        begun = time.perf_counter()
        sample(data, *crop)
        taken.append(1000 * (time.perf_counter() - begun))
    print(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
