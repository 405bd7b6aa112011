"""The denoiser of stage two: diffusers' UNet over latents, with the published layers and a class or a caption beside them.

Source: INFD supplement J.1 (no condition); Ho and Salimans 2022 (a condition that is dropped); Rombach et al. 2022
(cross-attention). Shapes: B batch, Z channels of z, l its side, S tokens and K channels of a caption.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from infd.compat import torchvision_ready
from infd.config import DenoiserConfig

NORM_EPS = 1e-5
"""Of every GroupNorm; E, D and R have 1e-6."""


class Denoiser(nn.Module):
    """z_t and t -> what the objective asks for (noise, v or velocity), (B, Z, l, l)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.net = starting_at_zero(unet(config))
        if config.condition == "text":
            self.no_caption = nn.Parameter(torch.zeros(1, config.context_dim))

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor | None = None, context: Tensor | None = None,
                keep: Tensor | None = None) -> Tensor:
        """z_t (B, Z, l, l); t (B,), whole steps of the process or 1000 times a flow's time.

        labels (B,) int64, class only; context (B, S, K), text only. keep (B,) bool: samples that keep their condition,
        the others and those without one see "none"; None: all keep it.
        """
        if self.config.condition == "class":
            none = torch.full_like(t, self.config.classes, dtype=torch.int64)
            labels = none if labels is None else labels
            return self.net(z_t, t, class_labels=labels if keep is None else torch.where(keep, labels, none)).sample
        if self.config.condition == "text":
            given = self.no_caption.expand(len(z_t), 1, -1) if context is None else context
            none = self.no_caption.expand(len(z_t), given.shape[1], -1)
            # 0 * none: every parameter has a gradient, as a group of workers asks
            told = given + 0 * none if keep is None else torch.where(keep[:, None, None], given, none)
            return self.net(z_t, t, encoder_hidden_states=told).sample
        return self.net(z_t, t).sample


def starting_at_zero(net: nn.Module) -> nn.Module:
    """`net` with zeros in the last convolution of each ResBlock, the last layer of each attention, and the last of all: it
    begins by saying 0. Source: INFD as published; Dhariwal and Nichol 2021."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    last: list[Any] = [cast(Any, net).conv_out]
    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Attention):
            last.append(cast(Any, module).to_out[0])
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


def unet(config: DenoiserConfig) -> nn.Module:
    """diffusers' network: `UNet2DModel`, or `UNet2DConditionModel` where a caption conditions it."""
    torchvision_ready()
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from infd.models.blocks import with_lean_blocks

    deeper = len(config.widths) - 1
    common = {
        "in_channels": config.z_dim, "out_channels": config.z_dim, "block_out_channels": config.widths,
        "layers_per_block": config.blocks, "norm_num_groups": config.norm_groups, "norm_eps": NORM_EPS,
        "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu",
    }
    if config.condition == "text":
        heads = tuple(width // config.head_dim for width in config.widths)
        net = UNet2DConditionModel(
            **common, down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * deeper),  # pyright: ignore
            up_block_types=(*["CrossAttnUpBlock2D"] * deeper, "UpBlock2D"),  # pyright: ignore
            cross_attention_dim=config.context_dim, attention_head_dim=heads)  # pyright: ignore
    else:
        net = UNet2DModel(
            **common, down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * deeper),  # pyright: ignore
            up_block_types=(*["AttnUpBlock2D"] * deeper, "UpBlock2D"),  # pyright: ignore
            attention_head_dim=config.head_dim, num_class_embeds=config.classes + 1 if config.classes else None)
    return with_lean_blocks(cast(nn.Module, net))
