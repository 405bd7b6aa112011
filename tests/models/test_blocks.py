"""The lean residual block and attention: diffusers' own numbers, bit for bit, and their layout in memory."""

import copy
import dataclasses

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from infd.models import autoencoder, denoiser
from infd.models.blocks import PixelAttention, ResBlock, with_lean_blocks
from infd.presets import ldm_tiny, tiny


def blocks() -> list[ResnetBlock2D]:
    torch.manual_seed(0)
    return [ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=None, groups=4),
            ResnetBlock2D(in_channels=8, out_channels=12, temb_channels=None, groups=4, time_embedding_norm="group"),
            ResnetBlock2D(in_channels=8, out_channels=12, temb_channels=5, groups=4)]


def attention(**more: object) -> Attention:
    torch.manual_seed(0)
    how = {"heads": 2, "dim_head": 4, "norm_num_groups": 4, "residual_connection": True, "bias": True, "upcast_softmax": True,
           "_from_deprecated_attn_block": True}
    return Attention(8, **{**how, **more})


def ends(block: nn.Module, layout: torch.memory_format) -> list[Tensor]:
    """Output and gradients of one pass in training."""
    torch.manual_seed(1)
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=layout).requires_grad_()
    timed = isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None
    out = block.train()(x, torch.randn(2, 5) if timed else None)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize(("layout", "error"), [(torch.contiguous_format, 0), (torch.channels_last, 1e-5)])
@pytest.mark.parametrize("number", range(5))
def test_ref_a_block_is_diffusers(number, layout, error):
    """Bit for bit in the plain layout; in the other one convolutions and norms are made by other kernels."""
    theirs = [*blocks(), attention(), attention(heads=1, dim_head=8)][number]
    ours = with_lean_blocks(copy.deepcopy(theirs))
    assert kind(ours) is kind(copy.deepcopy(ours)) is (ResBlock if number < 3 else PixelAttention)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    wanted = ends(theirs, layout)
    most = max(float(one.abs().max()) for one in wanted)                    # a key's bias has a gradient of rounding alone
    for found, one in zip(ends(ours, layout), wanted, strict=True):
        assert found.stride() == one.stride() or layout is torch.channels_last       # what follows takes the same kernels
        torch.testing.assert_close(found, one, rtol=error, atol=error * most)


def kind(module: nn.Module) -> type:
    return type(module.processor) if isinstance(module, Attention) else type(module)


def test_law_a_block_keeps_channels_last():
    """Also what its shortcut sees, which diffusers copies to the plain layout."""
    seen = []
    block = with_lean_blocks(blocks()[2]).to(memory_format=torch.channels_last)
    block.conv_shortcut.register_forward_hook(lambda module, given, out: seen.extend([given[0], out]))
    seen.append(ends(block, torch.channels_last)[0])
    seen.append(ends(with_lean_blocks(attention()).to(memory_format=torch.channels_last), torch.channels_last)[0])
    assert len(seen) == 4 and all(one.is_contiguous(memory_format=torch.channels_last) for one in seen)


def test_all_networks_have_lean_blocks():
    plain = ldm_tiny().model
    networks = [autoencoder.make_encoder(tiny().model), autoencoder.make_decoder(tiny().model), denoiser.unet(plain),
                denoiser.unet(dataclasses.replace(plain, condition="text", context_dim=8))]
    kinds = [{kind(module) for module in network.modules() if isinstance(module, ResnetBlock2D)
              or (isinstance(module, Attention) and module.group_norm is not None)} for network in networks]
    assert kinds == [{ResBlock}, {ResBlock}, {ResBlock, PixelAttention}, {ResBlock}]  # captions have attention of their own


def test_error_a_block_that_does_more():
    for more in ({"up": True}, {"down": True}, {"output_scale_factor": 2.0}, {"time_embedding_norm": "scale_shift"}):
        with pytest.raises(AssertionError, match="a block of another kind"):
            with_lean_blocks(ResnetBlock2D(in_channels=8, temb_channels=5, groups=4, **more))
    for more in ({"rescale_output_factor": 2.0}, {"residual_connection": False}, {"qk_norm": "layer_norm"}):
        with pytest.raises(AssertionError, match="attention of another kind"):
            with_lean_blocks(attention(**more))
