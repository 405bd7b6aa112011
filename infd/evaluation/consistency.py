"""Whether renders of one field at several sizes show the same image: SelfSSIM, and the shift from a size to its double.

SelfSSIM as ScaleParty computes it is MS-SSIM after a *nearest* resize; with an antialiased resize it says more. Both are
offered, by name. Renders are uint8 (side, side, 3).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from infd.evaluation.errors import EvaluationError
from infd.evaluation.pixels import SIGMA_PX, WINDOW_PX, require_pair, ssim_plane

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM's five scales, from the finest. Source: Wang, Simoncelli, Bovik 2003, section 3.2."""
LEAST_PX = 2 ** (len(SCALE_WEIGHTS) - 1)
Resize = Literal["nearest", "lanczos"]


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """MS-SSIM of two images, 0 to 1: per scale means over places and channels, negative ones taken as 0.

    The window is 11 px, sigma 1.5, shrunk in proportion where the image is smaller; scales are halved by 2 x 2 means.
    Raises EvaluationError: images of two sizes, or a side below 16 px.
    Law: 1 for equal images. Source: Wang et al. 2003, eq. 7, as generative-model code bases compute it.
    """
    require_pair(a, b)
    if min(a.shape[:2]) < LEAST_PX:
        raise EvaluationError(f"image of {a.shape[1]}x{a.shape[0]}: smaller than {LEAST_PX} px, which MS-SSIM's five scales "
                              "need; compare larger images")
    x, y = a.astype(np.float64), b.astype(np.float64)
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        size = min(WINDOW_PX, *x.shape[:2])
        planes = [ssim_plane(x[..., c], y[..., c], window_px=size, sigma_px=size * SIGMA_PX / WINDOW_PX) for c in range(3)]
        last = scale == len(SCALE_WEIGHTS) - 1
        mean = float(np.mean([plane.value if last else plane.structure for plane in planes]))
        product *= max(mean, 0.0) ** weight
        x, y = halved(x), halved(y)
    return product


def halved(x: np.ndarray) -> np.ndarray:
    """(H, W, C) -> means of 2 x 2 blocks, sizes rounded up; a last odd row or column counts twice."""
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)), mode="edge")
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def resized(image: np.ndarray, side: int, how: Resize) -> np.ndarray:
    """To side x side. nearest: pixel floor(i * old / new), as torch's interpolate by default; lanczos: PIL's, antialiased."""
    if image.shape[:2] == (side, side):
        return image
    if how == "nearest":
        rows, columns = (np.arange(side) * old // side for old in image.shape[:2])
        return image[rows][:, columns]
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def self_ssim(renders: Mapping[int, np.ndarray], *, how: Resize) -> np.ndarray:
    """(S, S) for renders of one field at S sides, in rising order: row = the side of comparison, column = the side of the
    other render, resized to the row's. The diagonal is 1 by definition.

    Raises EvaluationError: a render of another size than its key.
    """
    sides = sorted(renders)
    for side in sides:
        require_square(renders[side], side)
    return np.array([[1.0 if row == column else ms_ssim(renders[row], resized(renders[column], row, how)) for column in sides]
                     for row in sides])


def mean_shift(render: np.ndarray, double: np.ndarray, *, how: Resize = "lanczos") -> float:
    """Mean absolute difference, in levels of 255, of a render at side r from the one at 2 r brought down to r.

    Law: 0 where the larger render, brought down, is the smaller one.
    """
    side = render.shape[0]
    require_square(render, side)
    require_square(double, 2 * side)
    return float(np.abs(render.astype(np.int16) - resized(double, side, how)).mean())


def require_square(image: np.ndarray, side: int) -> None:
    """Raise EvaluationError unless the image is side x side."""
    if image.shape != (side, side, 3):
        raise EvaluationError(f"render of {image.shape[1]}x{image.shape[0]}: expected {side}x{side}; render it at that side")
