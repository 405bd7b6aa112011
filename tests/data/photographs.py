"""Real photographs that are there without a download: two that scikit-learn, which MLflow needs, brings along.

Both are camera JPEGs of 640 x 427 px under CC BY 2.0; README.txt beside them names the authors.
"""

import importlib.util
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def files() -> dict[str, bytes]:
    """china.jpg and flower.jpg, as they came."""
    found = importlib.util.find_spec("sklearn")  # not imported, which takes seconds
    assert found is not None and found.submodule_search_locations, "scikit-learn is not installed; run make setup"
    folder = Path(found.submodule_search_locations[0], "datasets", "images")
    return {name: (folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")}


def opened(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB")


def mosaic(width: int, height: int) -> Image.Image:
    """Both by turns, side by side at their own sharpness: what a larger photograph asks of a codec and of a filter."""
    china, flower = (np.asarray(opened(data)) for data in files().values())
    block = np.block([[[china], [flower]], [[flower], [china]]])
    times = -(-height // block.shape[0]), -(-width // block.shape[1]), 1
    return Image.fromarray(np.tile(block, times)[:height, :width])
