"""GAN losses, adaptive weight, and the weight gradient without a graph."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infd.losses.adversarial import (
    adaptive_weight,
    gradient_penalty,
    hinge_d,
    hinge_g,
    last_layer_gradient,
    relativistic_d,
    relativistic_g,
)


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


def test_law_gradients_of_two_losses_side_by_side_are_those_of_each():
    conv, features, grads = nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 9, 7), torch.randn(2, 2, 3, 9, 7)
    found = last_layer_gradient(features, torch.cat(list(grads), dim=1), conv).chunk(2)
    for one, grad in zip(found, grads, strict=True):
        torch.testing.assert_close(one, last_layer_gradient(features, grad, conv))


def test_error_another_kind_of_convolution():
    for options in ({"padding": "same"}, {"padding": 1, "stride": 2}, {"padding": 1, "padding_mode": "replicate"}):
        with pytest.raises(ValueError, match="the renderer's last layer is expected"):
            last_layer_gradient(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), nn.Conv2d(2, 3, 3, **options))


def test_law_last_layer_gradient_with_a_border_in_the_place_of_padding():
    conv, features, grad = nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 9, 9), torch.randn(2, 3, 7, 7)
    (wanted,) = torch.autograd.grad(nn.functional.conv2d(features, conv.weight), conv.weight, grad)
    torch.testing.assert_close(last_layer_gradient(features, grad, conv), wanted)


@given(st.floats(-50, 50), st.integers(0, 2**31))
def test_law_relativistic_losses_see_differences_alone(shift, seed):
    real, fake = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(relativistic_d(real + shift, fake + shift), relativistic_d(real, fake))
    torch.testing.assert_close(relativistic_g(real, fake), relativistic_d(fake, real))
    assert relativistic_d(real, real).item() == pytest.approx(math.log(2))


def test_law_the_penalty_of_a_linear_critic_is_half_its_squared_norm():
    weight = torch.randn(3, 6, 6, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    logits = (images * weight).sum(dim=(1, 2, 3)).reshape(5, 1, 1, 1).expand(5, 1, 4, 4) + 7
    penalty = gradient_penalty(logits, images)
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(penalty, weight)               # it can be trained on
    torch.testing.assert_close(gradient, weight.detach(), rtol=1e-5, atol=1e-5)
