"""Slow, obvious references of the pyramid: Lanczos in float64, one output pixel at a time, and whole-view patches."""

import numpy as np
from PIL import Image


def lanczos(t: np.ndarray) -> np.ndarray:
    """sinc(t) sinc(t / 3) inside |t| < 3."""
    return np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0.0)


def weights(size: int, start: float, end: float, out: int) -> np.ndarray:
    """(out, size): how much of each of `size` samples goes into each of `out`, for the range [start, end)."""
    scale = (end - start) / out
    reach = max(1.0, scale)
    centers = start + (np.arange(out) + 0.5) * scale
    raw = lanczos((np.arange(size) + 0.5 - centers[:, None]) / reach)
    return raw / raw.sum(1, keepdims=True)


def resized(pixels: np.ndarray, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """`box` (y0, x0, y1, x1) of pixels (H, W, C) at height × width: float64, not rounded, not clipped."""
    y0, x0, y1, x1 = box
    rows, columns = weights(pixels.shape[0], y0, y1, height), weights(pixels.shape[1], x0, x1, width)
    return np.einsum("hi,wj,ijc->hwc", rows, columns, pixels.astype(np.float64), optimize=True)


def whole_view(image: Image.Image, y: int, x: int, side: int, r: int) -> np.ndarray:
    """The square of `side` pixels at (y, x) resized to r × r at once by PIL: uint8 (r, r, 3)."""
    return np.asarray(image.resize((r, r), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)))
