"""Hinge losses, adaptive weight, and the weight gradient without a graph."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infd.losses.adversarial import adaptive_weight, hinge_d, hinge_g, last_layer_gradient


def test_law_hinge_asks_no_more_than_a_margin_of_one():
    real, fake = torch.tensor([3.0, 0.0, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_d(real, fake).item() == pytest.approx(0.5 * ((0 + 1 + 2) / 3 + (0 + 1 + 2) / 3))
    assert hinge_d(real, torch.full((3,), -1.0)).item() == pytest.approx(0.5)
    assert hinge_g(fake).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("rec", "gan", "weight"), [(3.0, 2.0, 3 / 2.0001), (1.0, 0.0, 1e4), (5.0, 1e-9, 1e4), (0.0, 1.0, 0)])
def test_law_adaptive_weight_is_the_ratio_of_norms_within_bounds(rec, gan, weight):
    grads = [torch.tensor([[value, 0.0]], requires_grad=True) for value in (rec, gan)]
    found = adaptive_weight(*grads)
    assert found.item() == pytest.approx(weight, rel=1e-5) and not found.requires_grad


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_law_last_layer_gradient_equals_autograd(batch, dim, height, width, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(dim, 3, 3, padding=1)
    features, grad_pred = torch.randn(batch, dim, height, width), torch.randn(batch, 3, height, width)
    (wanted,) = torch.autograd.grad(conv(features), conv.weight, grad_pred)
    torch.testing.assert_close(last_layer_gradient(features, grad_pred, conv), wanted)


def test_error_another_kind_of_convolution():
    for options in ({"padding": "same"}, {"padding": 1, "stride": 2}, {"padding": 1, "padding_mode": "replicate"}):
        with pytest.raises(ValueError, match="the renderer's last layer is expected"):
            last_layer_gradient(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), nn.Conv2d(2, 3, 3, **options))
