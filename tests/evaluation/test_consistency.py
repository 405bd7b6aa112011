"""SelfSSIM and the shift between sizes."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from pictures import picture
from PIL import Image
from refs import metrics

from infd.evaluation.consistency import SCALE_WEIGHTS, halved, mean_shift, ms_ssim, resized, self_ssim
from infd.evaluation.errors import EvaluationError


def renders(*sides: int, seed: int = 0) -> dict[int, np.ndarray]:
    """One image at several sides, each from the largest."""
    whole = picture(max(sides) * 2, max(sides) * 2, seed)
    return {side: np.asarray(whole.resize((side, side), Image.Resampling.LANCZOS)) for side in sides}


@pytest.mark.parametrize("shape", [(7, 4), (8, 9), (6, 6)])
def test_ref_halving(shape):
    plane = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(halved(plane[..., None])[..., 0], metrics.halved(plane), rtol=1e-12)
    # As published code has it: a 2 x 2 box with reflected borders, every second pixel.
    box = scipy.ndimage.convolve(plane, np.full((2, 2), 0.25), mode="reflect")[::2, ::2]
    np.testing.assert_allclose(halved(plane[..., None])[..., 0], box, rtol=1e-12)


def test_ref_ms_ssim_by_its_definition():
    a = renders(44)[44]
    b = np.clip(a + np.random.default_rng(1).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    expected = 1.0
    x, y = a.astype(float), b.astype(float)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        size = min(11, x.shape[0])
        both = [metrics.ssim(x[..., c], y[..., c], size=size, sigma=size * 1.5 / 11) for c in range(3)]
        expected *= max(0.0, np.mean([one[0 if scale == 4 else 1] for one in both])) ** weight
        x, y = (np.stack([metrics.halved(side[..., c]) for c in range(3)], -1) for side in (x, y))
    assert ms_ssim(a, b) == pytest.approx(expected, rel=1e-9)
    assert 0 < expected < 0.95


def test_law_ms_ssim_of_equal_images_is_1_and_of_a_negative_0():
    a = renders(48)[48]
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(a, 255 - a) == 0


@pytest.mark.parametrize(("old", "new"), [(64, 32), (32, 64), (64, 48), (48, 64), (30, 45), (7, 16), (256, 160), (5, 5)])
def test_ref_nearest_is_torchs(old, new):
    image = np.random.default_rng(old).integers(0, 256, (old, old, 3), dtype=np.uint8)
    expected = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].double(), size=(new, new))[0].permute(1, 2, 0)
    np.testing.assert_array_equal(resized(image, new, "nearest"), expected.numpy())


def test_law_self_ssim_is_1_on_the_diagonal_and_falls_with_another_image():
    same, other = renders(32, 48, 64), renders(32, 48, 64, seed=5)
    for how in ("nearest", "lanczos"):
        matrix = self_ssim(same, how=how)
        assert matrix.shape == (3, 3)
        assert (np.diag(matrix) == 1).all() and (matrix[~np.eye(3, dtype=bool)] < 1).all()
        assert (self_ssim({**same, 64: other[64]}, how=how)[:2, 2] < matrix[:2, 2]).all()
    # Row: the side of comparison; column: the other render, brought to the row's.
    lanczos = self_ssim(same, how="lanczos")
    assert lanczos[0, 2] == ms_ssim(same[32], resized(same[64], 32, "lanczos"))
    assert lanczos[0, 2] > self_ssim(same, how="nearest")[0, 2]


def test_law_shift_is_0_for_the_same_image_and_grows_with_what_is_moved():
    big = renders(64)[64]
    small = resized(big, 32, "lanczos")
    assert mean_shift(small, big) == 0
    assert mean_shift(np.clip(small.astype(int) + 3, 0, 255).astype(np.uint8), big) == pytest.approx(3, abs=0.2)
    shifts = [mean_shift(np.roll(small, pixels, axis=1), big) for pixels in (1, 2, 4)]
    assert 0 < shifts[0] < shifts[1] < shifts[2]


def test_error_sizes():
    big = renders(64)[64]
    with pytest.raises(EvaluationError, match="render of 64x64: expected 66x66"):
        mean_shift(big[:33, :33], big)
    with pytest.raises(EvaluationError, match="render of 64x64: expected 32x32"):
        self_ssim({32: big, 64: big}, how="lanczos")
    with pytest.raises(EvaluationError, match="64x15: smaller than 16 px"):
        ms_ssim(big[:15], big[:15])
