"""The update: whatever the layout of a gradient, and its moments of a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from infd.config import OptimizerConfig
from infd.training import optimizers


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_law_the_layout_of_a_gradient_changes_nothing(decay):
    """torch's fused Adam takes gradients as they lie in memory: one in another layout would move other weights."""
    ends, config = [], OptimizerConfig(lr=0.1, weight_decay=decay)
    for layout in (torch.channels_last, torch.contiguous_format):
        network, generator = conv(), torch.Generator().manual_seed(1)
        adam = optimizers.adam(network, config)
        for step in (1, 2, 3):
            for parameter in network.parameters():
                given = torch.randn(parameter.shape, generator=generator)
                parameter.grad = given.contiguous(memory_format=layout) if parameter.dim() == 4 else given
            optimizers.update(adam, config, step)
        ends.append(copy.deepcopy(network.state_dict()))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=0)


def test_ref_fused_adam_is_the_plain_one():
    config = OptimizerConfig(lr=0.1)
    ours, plain = conv(), conv()
    adam = optimizers.adam(ours, config)
    reference = torch.optim.Adam(plain.parameters(), lr=0.1, betas=config.betas, foreach=False)
    for step in (1, 2, 3):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        optimizers.update(adam, config, step)
        reference.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
