"""VQ, FSQ and KL: golden values, and which side of the loss beta is on."""

import pytest
import torch
import torch.nn.functional as F
from refs import golden

from infd.models.quantizers import FSQ, KL, VQ, split_moments


def test_golden_vq_gives_the_published_codes_values_and_loss():
    stage_one, quantizer = golden.tensors("stage_one"), golden.networks().autoencoder.quantizer
    found = quantizer(stage_one["encoder.z"])
    torch.testing.assert_close(found.codes.flatten(), stage_one["quantizer.indices"], rtol=0, atol=0)
    assert golden.relative_error(found.z_q.detach(), stage_one["quantizer.z_q"]) < 1e-6
    assert golden.relative_error(found.loss.detach(), stage_one["quantizer.loss"]) < 1e-6


@pytest.mark.parametrize("beta_on", ["codebook", "commitment"])
def test_law_beta_scales_one_side_of_the_gradient(beta_on):
    torch.manual_seed(0)
    quantizer = VQ(size=7, z_dim=3, beta=0.25, beta_on=beta_on)
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    found = quantizer(z)
    z_grad, e_grad = torch.autograd.grad(found.loss, (z, quantizer.embedding.weight))
    e = quantizer.embedding(found.codes).permute(0, 3, 1, 2)
    pull = 2 * (z - e).detach() / z.numel()
    on_z, on_e = (1.0, 0.25) if beta_on == "codebook" else (0.25, 1.0)
    torch.testing.assert_close(z_grad, on_z * pull)
    expected = torch.zeros(7, 3).index_add_(0, found.codes.flatten(), -on_e * pull.permute(0, 2, 3, 1).reshape(-1, 3))
    torch.testing.assert_close(e_grad, expected)
    torch.testing.assert_close(found.loss.detach(), 1.25 * F.mse_loss(z, e).detach())


def test_law_the_gradient_passes_straight_to_z_and_not_to_the_codebook():
    quantizer, z = VQ(size=7, z_dim=2), torch.randn(1, 2, 3, 3, requires_grad=True)
    weights = torch.randn(1, 2, 3, 3)
    (quantizer(z).z_q * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)
    assert quantizer.embedding.weight.grad is None


def test_law_codes_are_the_nearest_and_the_first_of_equals():
    quantizer = VQ(size=5, z_dim=3)
    with torch.no_grad():
        quantizer.embedding.weight[3] = quantizer.embedding.weight[1]
    z = torch.randn(3, 3, 4, 2)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 3)
    distance = (rows[:, None] - quantizer.embedding.weight[None]).square().sum(-1)
    torch.testing.assert_close(quantizer.codes(z).flatten(), distance.argmin(1), rtol=0, atol=0)
    on_code = quantizer.embedding.weight[3].detach().reshape(1, 3, 1, 1)
    assert quantizer.codes(on_code).item() == 1


def test_law_cutting_the_positions_does_not_change_the_codes(monkeypatch):
    quantizer, z = VQ(size=11, z_dim=3), torch.randn(2, 3, 5, 7)
    whole = quantizer.codes(z)
    monkeypatch.setattr("infd.models.quantizers.ROWS_AT_ONCE", 8)
    torch.testing.assert_close(quantizer.codes(z), whole, rtol=0, atol=0)


def test_law_vq_is_float32_under_autocast():
    quantizer, z = VQ(size=64, z_dim=3), torch.randn(1, 3, 8, 8)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(z)
    torch.testing.assert_close(cast.z_q, plain.z_q, rtol=0, atol=0)


def test_law_the_codebook_starts_uniform_within_one_over_its_size():
    weight = VQ(size=500, z_dim=3).embedding.weight.detach()
    assert weight.abs().max() <= 1 / 500 and weight.std().item() == pytest.approx(2 / 500 / 12**0.5, rel=0.1)


def test_golden_kl_gives_the_published_divergence_and_spread():
    stage_one = golden.tensors("stage_one")
    moments = stage_one["kl.parameters"]
    assert golden.relative_error(KL()(moments).loss, stage_one["kl.mean_loss"]) < 1e-5
    for name in ("kl", "kl.clamp"):
        moments, per_sample = stage_one[f"{name}.parameters"], stage_one[f"{name}.per_sample"]
        noise = torch.ones_like(moments[:, :moments.shape[1] // 2])
        std = KL()(moments, noise).z_q - split_moments(moments)[0]
        # subtracting the mean again costs up to an ulp of mean + std
        torch.testing.assert_close(std, stage_one[f"{name}.std"], rtol=1e-5, atol=1e-6)
        for one, wanted in zip(moments, per_sample, strict=True):
            assert golden.relative_error(KL()(one[None]).loss, wanted) < 1e-5


def test_law_kl_without_noise_is_the_mean():
    moments = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(KL()(moments).z_q, moments[:, :3], rtol=0, atol=0)


LEVELS = (8, 5, 4, 3, 2)


def test_law_fsq_reaches_every_level_of_every_channel_and_no_other():
    quantizer = FSQ(LEVELS)
    z = torch.randn(4, len(LEVELS), 64, 64) * 3
    found = quantizer(z)
    for channel, count in enumerate(LEVELS):
        values = found.z_q[:, channel].unique()
        wanted = (torch.arange(count) - count // 2) / (count // 2)
        torch.testing.assert_close(values, wanted.float())
    assert found.loss.item() == 0 and found.z_q.min() >= -1 and found.z_q.max() <= 1


def test_law_fsq_codes_name_the_combination_of_levels():
    quantizer = FSQ(LEVELS)
    found = quantizer(torch.randn(2, len(LEVELS), 16, 16) * 3)
    rest, size = found.codes, 1
    for channel, count in enumerate(LEVELS):
        digit, rest, size = rest % count, rest // count, size * count
        torch.testing.assert_close((digit - count // 2) / (count // 2), found.z_q[:, channel])
    assert found.codes.dtype == torch.int64 and found.codes.min() >= 0 and found.codes.max() < size and not rest.any()


def test_law_fsq_passes_the_gradient_of_its_squashing():
    z, weights = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3)
    quantizer = FSQ((8, 5))
    (found,) = torch.autograd.grad((quantizer(z).z_q * weights).sum(), z)
    (wanted,) = torch.autograd.grad((quantizer.bound(z) / (quantizer.levels // 2) * weights).sum(), z)
    torch.testing.assert_close(found, wanted)
    assert quantizer(torch.zeros(1, 2, 1, 1)).z_q.abs().max() == 0 and not quantizer.state_dict()


def test_law_fsq_is_float32_under_autocast():
    quantizer, z = FSQ((8, 5, 5)), torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(z)
    torch.testing.assert_close(cast.z_q, quantizer(z).z_q, rtol=0, atol=0)
