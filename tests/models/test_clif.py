"""The renderer: sizes, reach, given statistics, partial runs."""

import pytest
import torch
from refs import golden, points
from torch import nn

from infd.config import AutoencoderConfig
from infd.models.renderers.clif import CLIF, Statistics


def small(blocks: int = 2) -> CLIF:
    torch.manual_seed(1)
    network = CLIF(phi_dim=5, dim=8, blocks=blocks, groups=4).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return network.requires_grad_(False)


def statistics_of(network: CLIF, query: torch.Tensor) -> Statistics:
    """From hooks on the norms' inputs, not from `hidden`."""
    seen: list[torch.Tensor] = []
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for norm in norms]
    network(query)
    for hook in hooks:
        hook.remove()
    grouped = [x.unflatten(1, (network.num_groups, -1)).flatten(2) for x in seen]
    return Statistics(torch.stack([x.mean(2) for x in grouped]),
                      torch.stack([x.var(2, correction=0) for x in grouped]))


def test_law_paper_size_has_the_published_parameters_groups_and_eps():
    with torch.device("meta"):
        network = CLIF.from_config(AutoencoderConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_674_179
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == network.num_norms == 5
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(32, 1e-6)}
    assert network.reach_px == 6 and network.last_layer.weight.shape == (3, 256, 3, 3)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_law_own_statistics_given_back_change_nothing(blocks):
    network, query = small(blocks), torch.randn(2, 9, 11, 13, dtype=torch.float64)
    statistics = statistics_of(network, query)
    assert statistics.mean.shape == (2 * blocks + 1, 2, 4)
    # given statistics are applied in float32
    torch.testing.assert_close(network.float()(query.float(), Statistics(*(x.float() for x in statistics))),
                               network.double()(query).float(), rtol=1e-4, atol=1e-4)


def test_law_hidden_is_the_input_of_each_norm():
    network, query = small(), torch.randn(1, 9, 11, 13, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(query)
    inputs = list(seen)
    for norm in range(network.num_norms):
        torch.testing.assert_close(network.hidden(query, norm=norm), inputs[norm], rtol=0, atol=0)


@pytest.mark.parametrize("blocks", [1, 2])
def test_law_with_frozen_statistics_a_pixel_reaches_exactly_so_far(blocks):
    network, side = small(blocks), 31
    query = torch.randn(1, 9, side, side)
    network.float()
    frozen = statistics_of(network, query)
    changed = query.clone()
    changed[..., side // 2, side // 2] += 1
    differs = (network(query, frozen) != network(changed, frozen)).any(1)[0]
    rows = differs.any(1).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (side // 2 - network.reach_px, side // 2 + network.reach_px)


@pytest.mark.slow
def test_golden_renders_of_a_whole_and_of_any_grid():
    stage_one, network = golden.tensors("stage_one"), golden.networks().autoencoder.eval()
    with torch.no_grad():
        field = network.field(stage_one["encoder.z"][:1])
        coord, cell = stage_one["render.patch.coord"], stage_one["render.patch.cell"]
        query = torch.cat(points.query(field.phi, coord, cell), dim=-1).permute(0, 3, 1, 2)
        assert golden.relative_error(network.renderer(query), stage_one["render.patch.out"]) < 1e-5
