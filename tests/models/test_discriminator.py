"""The patch discriminator: sizes, start, golden logits."""

import pytest
import torch
from refs import golden
from torch import nn

from infd.config import DiscriminatorConfig
from infd.models.discriminator import PatchDiscriminator


def test_law_paper_size_has_the_published_parameters_and_field():
    with torch.device("meta"):
        network = PatchDiscriminator(DiscriminatorConfig())
        assert network(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_765_633
    assert sum(buffer.numel() for buffer in network.buffers()) == 1_795


@pytest.mark.parametrize(("layers", "dims"), [(1, (16, 32)), (2, (16, 32, 64)), (5, (16, 32, 64, 128, 128, 128))])
def test_law_widths_double_up_to_eight_times_the_base(layers, dims):
    network = PatchDiscriminator(DiscriminatorConfig(base_dim=16, layers=layers))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert tuple(conv.out_channels for conv in convolutions) == (*dims, 1)
    assert [conv.stride[0] for conv in convolutions] == [2] * layers + [1, 1]


def test_law_weights_start_narrow():
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig())
    convolution, norm = network.net[5], network.net[3]
    assert isinstance(convolution, nn.Conv2d) and convolution.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert isinstance(norm, nn.BatchNorm2d) and norm.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3) and norm.bias.abs().max() == 0


def test_golden_eval_logits():
    stage_one, network = golden.tensors("stage_one"), golden.networks().discriminator.eval()
    with torch.no_grad():
        logits = network(stage_one["batch.gt"])
    assert golden.relative_error(logits, stage_one["disc.eval_logits_real"]) < 1e-5
