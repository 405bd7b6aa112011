"""LPIPS: the package's numbers, frozen, without dropout."""

import pytest
import torch
from refs import golden
from torch import nn

from infd.compat import torchvision_ready
from infd.errors import WeightsError
from infd.losses.perceptual import Lpips, unit


def package(net: str) -> nn.Module:
    """The package's own network with random weights; heads are positive as published ones are."""
    torchvision_ready()
    import lpips

    torch.manual_seed(0)
    model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("lin"):
                parameter.abs_()
    return model.eval()


@pytest.fixture(scope="module")
def alex() -> nn.Module:
    return package("alex")


def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(2, 3, 64, 72) * 2 - 1, torch.rand(2, 3, 64, 72) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_ref_equals_the_package(net):
    reference, (pred, target) = package(net), images()
    ours = Lpips.from_state_dict(net, reference.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(pred, target), reference(pred, target).flatten(), rtol=1e-5, atol=1e-8)


def test_golden_distance_and_widths_that_follow_the_tensors():
    stage_one = golden.tensors("stage_one")
    found = golden.networks().lpips(stage_one["render.batch_patch"], stage_one["batch.gt"])
    assert golden.relative_error(found, stage_one["perc.per_sample"].flatten()) < 1e-5


def test_law_a_parent_in_train_mode_does_not_switch_dropout_on(alex):
    parent, (pred, target) = nn.Sequential(Lpips("alex", alex.state_dict())), images()
    before = parent[0](pred, target)
    parent.train()
    assert not any(module.training for module in parent[0].modules())
    torch.testing.assert_close(parent[0](pred, target), before, rtol=0, atol=0)


def test_law_only_the_prediction_gets_a_gradient(alex):
    network, (pred, target) = Lpips("alex", alex.state_dict()), images()
    pred.requires_grad_()
    target.requires_grad_()
    network(pred, target).sum().backward()
    assert pred.grad is not None and pred.grad.abs().max() > 0 and target.grad is None
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(value.is_meta for value in network.state_dict().values())


def test_law_equal_images_are_at_distance_zero_with_a_finite_gradient(alex):
    network, (pred, _) = Lpips("alex", alex.state_dict()), images()
    pred.requires_grad_()
    distance = network(pred, pred.detach())
    distance.sum().backward()
    assert distance.abs().max() == 0 and pred.grad.isfinite().all()


def test_law_a_feature_that_is_zero_everywhere_has_a_gradient_of_zero():
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_law_names_of_shared_heads_and_constants_are_optional(alex):
    pred, target = images()
    optional = ("lins.", "scaling_layer.")
    state = {name: value for name, value in alex.state_dict().items() if not name.startswith(optional)}
    torch.testing.assert_close(Lpips("alex", state)(pred, target), Lpips("alex", alex.state_dict())(pred, target))


def test_error_names_missing_and_unknown_tensors(alex):
    state = alex.state_dict()
    del state["lin3.model.1.weight"]
    with pytest.raises(WeightsError, match=r"lpips-alex: missing \['lin3.model.1.weight'\], unknown \['extra'\]"):
        Lpips("alex", state | {"extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"net.slice1.0.weight: shape \(64, 3, 3, 3\); a kernel of \(11, 11\)"):
        Lpips("alex", alex.state_dict() | {"net.slice1.0.weight": torch.zeros(64, 3, 3, 3)})
