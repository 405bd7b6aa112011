"""How near two images are, pixel by pixel: PSNR, SSIM, LPIPS. Images are uint8 (H, W, 3), RGB, of one size.

Law: equal images give PSNR inf, SSIM 1, LPIPS 0; the two images may be exchanged.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from infd import weights
from infd.evaluation.errors import EvaluationError
from infd.evaluation.features import tensors_sha256
from infd.losses.perceptual import Lpips

PEAK = 255.0
LUMA = np.array([65.481, 128.553, 24.966])
"""Weights of R, G, B in [0, 1] for Y' in 16 to 235. Source: ITU-R BT.601, as MATLAB's rgb2ycbcr, without its rounding."""
WINDOW_PX, SIGMA_PX = 11, 1.5
K1, K2 = 0.01, 0.03
LPIPS_LEAST_PX = {"vgg": 16, "alex": 31}
"""Below it the trunk has no pixel left."""


def require_pair(a: np.ndarray, b: np.ndarray) -> None:
    """Raise EvaluationError unless both are uint8 (H, W, 3) of one size."""
    for image in (a, b):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image of {image.dtype} {image.shape}: expected uint8 (H, W, 3)")
    if a.shape != b.shape:
        raise EvaluationError(f"images: {a.shape[1]}x{a.shape[0]} and {b.shape[1]}x{b.shape[0]}; expected one size; "
                              "name the sizes at which they are to be compared")


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of BT.601, float64 (H, W), 16 to 235."""
    return 16 + rgb.astype(np.float64) @ (LUMA / PEAK)


def mse(a: np.ndarray, b: np.ndarray, *, border_px: int = 0) -> float:
    """Mean squared difference over all values, in squared levels; `border_px` on each side do not count."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    if border_px:
        if 2 * border_px >= min(difference.shape[:2]):
            raise EvaluationError(f"image of {a.shape[1]}x{a.shape[0]}: nothing is left inside a border of {border_px} px; "
                                  "choose a smaller border")
        difference = difference[border_px:-border_px, border_px:-border_px]
    return float(np.square(difference).mean())


def psnr_db(mean_squared: float) -> float:
    """Decibels against a peak of 255, of a mean squared error in squared levels; inf for 0."""
    return math.inf if mean_squared == 0 else 10 * math.log10(PEAK**2 / mean_squared)


class Ssim(NamedTuple):
    """Means over all places where the window fits whole."""

    value: float
    structure: float
    """Without the factor of the means: the part that MS-SSIM takes from all scales but the last."""


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two images: the mean over R, G and B, window 11 x 11 Gaussian of sigma 1.5, population covariances.

    Raises EvaluationError: a side below 11 px. Source: Wang et al. 2004, eq. 13; equal to scikit-image's with
    gaussian_weights=True, use_sample_covariance=False, data_range=255.
    """
    require_pair(a, b)
    return float(np.mean([ssim_plane(a[..., channel], b[..., channel]).value for channel in range(3)]))


def ssim_y(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of Y (BT.601) alone, as super-resolution reports it."""
    require_pair(a, b)
    return ssim_plane(luma(a), luma(b)).value


def ssim_plane(a: np.ndarray, b: np.ndarray, *, window_px: int = WINDOW_PX, sigma_px: float = SIGMA_PX) -> Ssim:
    """Of two planes (H, W) whose values span 0 to 255."""
    if min(a.shape) < window_px:
        raise EvaluationError(f"image of {a.shape[1]}x{a.shape[0]}: smaller than SSIM's window of {window_px} px; compare "
                              "larger images")
    window = gaussian(window_px, sigma_px)
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = filtered(x, window), filtered(y, window)
    var_x = filtered(x * x, window) - mean_x * mean_x
    var_y = filtered(y * y, window) - mean_y * mean_y
    covariance = filtered(x * y, window) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    value = structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return Ssim(float(value.mean()), float(structure.mean()))


def gaussian(size: int, sigma: float) -> np.ndarray:
    """(size,), sum 1, centred."""
    place = np.arange(size) - (size - 1) / 2
    weights_of = np.exp(-np.square(place) / (2 * sigma**2))
    return weights_of / weights_of.sum()


def filtered(plane: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(H, W) -> (H - w + 1, W - w + 1): the window (w,) along both axes, where it fits whole."""
    for axis in (0, 1):
        length = plane.shape[axis] - len(window) + 1
        plane = np.sum([weight * plane.take(range(start, start + length), axis=axis)
                        for start, weight in enumerate(window)], axis=0)
    return plane


class LpipsMetric:
    """LPIPS v0.1 of 8-bit images, by weights checked by hash. Lower is nearer. Source: Zhang et al. 2018, eq. 1."""

    def __init__(self, net: Literal["vgg", "alex"], *, root: str = "", device: str = "cpu") -> None:
        """`root`: the weights folder; empty: the usual one. Raises WeightsError: absent or damaged."""
        state = weights.load_weights(f"lpips-{net}", root or None)
        self.net, self.device = net, device
        self.sha256 = tensors_sha256(state)
        self.model = Lpips(net, state).to(device)

    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        require_pair(a, b)
        if min(a.shape[:2]) < LPIPS_LEAST_PX[self.net]:
            raise EvaluationError(f"image of {a.shape[1]}x{a.shape[0]}: LPIPS ({self.net}) needs at least "
                                  f"{LPIPS_LEAST_PX[self.net]} px a side; compare larger images")
        with torch.no_grad():
            return float(self.model(self.tensor(a), self.tensor(b))[0])

    def tensor(self, image: np.ndarray) -> torch.Tensor:
        """(1, 3, H, W) in [-1, 1] on the device."""
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(self.device)
        return batch.float() / 127.5 - 1
