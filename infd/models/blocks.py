"""Residual blocks and attention of E, D and the denoiser: diffusers' own without work that does nothing here."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from infd.compat import torchvision_ready

torchvision_ready()

from diffusers.models.attention_processor import Attention  # noqa: E402  (after torchvision is ready)
from diffusers.models.resnet import ResnetBlock2D  # noqa: E402


class ResBlock(ResnetBlock2D):
    """A `ResnetBlock2D` without resampling, its time added after the first convolution, its sum not scaled.

    diffusers' forward copies its input to the plain layout before a 1 x 1 shortcut in training (lest DDP warn that a gradient
    lies otherwise than its bucket, which costs less), there and back where the network is in channels last, and divides the
    sum by 1. Law: the same numbers, bit for bit in the plain layout.
    """

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, C, h, w) and the embedded time (B, T) -> (B, D, h, w)."""
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.nonlinearity(self.norm2(hidden))))
        return (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)) + hidden


class PixelAttention:
    """Attention among all pixels of a map, with the map added: a processor of diffusers' `Attention`.

    diffusers' own norms a copy of a map in channels last in the plain layout, lays that out anew for each of query, key and
    value, and divides the sum by 1. Law: the same numbers, bit for bit in the plain layout, and what it gives lies in memory
    as diffusers' does, in channels last.
    """

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        b, c, h, w = hidden_states.shape
        pixels = attn.group_norm(hidden_states).flatten(2).transpose(1, 2)      # a view
        q, k, v = (layer(pixels).view(b, h * w, attn.heads, -1).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, -1)
        return attn.to_out[1](attn.to_out[0](mixed)).transpose(1, 2).unflatten(2, (h, w)) + hidden_states


def with_lean_blocks(network: nn.Module) -> nn.Module:
    """`network`, a `ResBlock` wherever it has a block of that kind, and `PixelAttention` where attention is of maps; weights
    and their names stay."""
    for module in network.modules():
        if type(module) is ResnetBlock2D:
            plain = module.upsample is None and module.downsample is None and module.time_embedding_norm != "scale_shift"
            if not plain or module.skip_time_act or module.output_scale_factor != 1:
                raise AssertionError(f"a block of another kind: {module}")
            module.__class__ = ResBlock
        elif isinstance(module, Attention) and module.group_norm is not None:
            more = (module.spatial_norm, module.norm_q, module.norm_k, module.norm_cross)
            if any(more) or not module.residual_connection or module.rescale_output_factor != 1:
                raise AssertionError(f"attention of another kind: {module}")
            module.set_processor(PixelAttention())  # pyright: ignore[reportArgumentType]
    return network
