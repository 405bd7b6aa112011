"""Images made worse, in three ways and three steps."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter


def blurred(image: np.ndarray, level: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur((0.8, 1.6, 3.2)[level - 1])))


def noisy(image: np.ndarray, level: int) -> np.ndarray:
    """Seeded by the image, so that it is another noise for each and the same in each run."""
    rng = np.random.default_rng(int(image.astype(np.int64).sum()))
    return np.clip(image + rng.normal(0, (6, 18, 50)[level - 1], image.shape), 0, 255).round().astype(np.uint8)


def jpeg(image: np.ndarray, level: int) -> np.ndarray:
    """Far apart: between qualities 60 and 12 grain goes and blocks come, and a network of random filters may take the one
    for the other."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=(50, 8, 2)[level - 1])
    with Image.open(buffer) as again:
        return np.asarray(again.convert("RGB"))


DEGRADATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"blur": blurred, "noise": noisy, "jpeg": jpeg}
