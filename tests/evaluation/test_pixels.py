"""PSNR, SSIM, LPIPS: by definition, against scikit-image's numbers, worse for worse images."""

import math

import numpy as np
import pytest
import torch
from evaluation.degraded import DEGRADATIONS
from pictures import picture
from refs import metrics

from infd import weights
from infd.errors import WeightsError
from infd.evaluation import pixels
from infd.evaluation.errors import EvaluationError
from infd.losses import perceptual
from infd.losses.perceptual import Lpips

needs_alex = pytest.mark.skipif(weights.check("lpips-alex").state != "ok", reason="the real weights lpips-alex are not here")


def pair(width: int = 70, height: int = 54) -> tuple[np.ndarray, np.ndarray]:
    a = np.asarray(picture(width, height))
    noise = np.random.default_rng(0).normal(0, 12, a.shape)
    return a, np.clip(a + noise, 0, 255).astype(np.uint8)


def test_golden_numbers_of_scikit_image():
    # scikit-image 0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255),
    # and peak_signal_noise_ratio, of these two images.
    a, b = pair()
    assert pixels.ssim(a, b) == pytest.approx(0.39462221931423996, rel=1e-9)
    assert pixels.ssim_y(a, b) == pytest.approx(0.6317468497544045, rel=1e-9)
    assert pixels.psnr_db(pixels.mse(a, b)) == pytest.approx(26.5470962423443, rel=1e-12)


@pytest.mark.parametrize(("size", "sigma"), [(11, 1.5), (6, 6 * 1.5 / 11)])
def test_ref_ssim_window_by_window(size, sigma):
    a, b = (image[:19, :16, 1].astype(float) for image in pair())
    found = pixels.ssim_plane(a, b, window_px=size, sigma_px=sigma)
    np.testing.assert_allclose(found, metrics.ssim(a, b, size=size, sigma=sigma), rtol=1e-9)


def test_law_luma_of_bt_601():
    levels = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(pixels.luma(levels)[0], [16, 235, 81.481, 144.553, 40.966], rtol=1e-12)


def test_law_psnr_by_hand():
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 48
    assert pixels.mse(a, b) == 48.0
    assert pixels.psnr_db(48.0) == pytest.approx(10 * math.log10(255**2 / 48), rel=1e-12)
    assert pixels.mse(a, b, border_px=1) == 0
    with pytest.raises(EvaluationError, match="nothing is left inside a border of 2 px"):
        pixels.mse(a, b, border_px=2)


def test_law_equal_images():
    a, _ = pair()
    assert pixels.psnr_db(pixels.mse(a, a)) == math.inf
    assert pixels.ssim(a, a) == pixels.ssim_y(a, a) == 1
    flat = np.full((20, 20, 3), 255, np.uint8)
    assert pixels.ssim(flat, flat) == 1


def test_law_images_may_be_exchanged():
    a, b = pair()
    assert pixels.ssim(a, b) == pixels.ssim(b, a) and pixels.mse(a, b) == pixels.mse(b, a)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_a_worse_image_scores_worse(kind):
    a = np.asarray(picture(96, 96, seed=3))
    worse = [DEGRADATIONS[kind](a, level) for level in (1, 2, 3)]
    psnr = [pixels.psnr_db(pixels.mse(a, image)) for image in [a, *worse]]
    similar = [pixels.ssim(a, image) for image in [a, *worse]]
    assert psnr == sorted(psnr, reverse=True) and len(set(psnr)) == 4
    assert similar == sorted(similar, reverse=True) and len(set(similar)) == 4


def narrow_lpips(net: str) -> dict[str, torch.Tensor]:
    """Random weights of LPIPS with an eighth of its channels, and heads that are positive as published ones are."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in perceptual.made(net).named_parameters()}
    small = {name: tuple(side if side in (1, 3, 5, 11) else side // 8 for side in shape) for name, shape in shapes.items()}
    return {name: torch.rand(shape) if name.startswith("lin") else 0.2 * torch.randn(shape) for name, shape in small.items()}


@pytest.mark.parametrize(("net", "least"), pixels.LPIPS_LEAST_PX.items())
def test_law_lpips_of_bytes_is_that_of_the_loss_and_0_for_equal_images(net, least, monkeypatch):
    state = narrow_lpips(net)
    monkeypatch.setattr(weights, "load_weights", lambda *_: state)
    metric = pixels.LpipsMetric(net)
    a, b = pair(64, 48)
    expected = Lpips(net, state)(*(torch.from_numpy(x.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for x in (a, b)))
    assert metric(a, b) == pytest.approx(float(expected), rel=1e-5)
    assert metric(a, a) == 0 and metric(a, b) > 0
    assert metric(a[:least, :least], b[:least, :least]) > 0
    with pytest.raises(EvaluationError, match=f"LPIPS .{net}. needs at least {least} px a side"):
        metric(a[:least - 1], b[:least - 1])


@needs_alex
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_real_lpips_sees_a_worse_image(kind):
    a = np.asarray(picture(96, 96, seed=3))
    metric = pixels.LpipsMetric("alex")
    found = [metric(a, DEGRADATIONS[kind](a, level)) for level in (1, 2, 3)]
    assert 0 < found[0] < found[1] < found[2]
    assert metric.sha256 == weights.network("lpips-alex").sha256


def test_error_lpips_without_weights_says_how_to_get_them(tmp_path):
    with pytest.raises(WeightsError, match="run python jobs/weights.py get lpips-vgg"):
        pixels.LpipsMetric("vgg", root=str(tmp_path))


def test_error_sizes():
    a, _ = pair()
    with pytest.raises(EvaluationError, match="70x54 and 69x54; expected one size"):
        pixels.ssim(a, a[:, 1:])
    with pytest.raises(EvaluationError, match="70x10: smaller than SSIM's window of 11 px"):
        pixels.ssim(a[:10], a[:10])
