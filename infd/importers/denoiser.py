"""The denoiser of a published INFD checkpoint under our names: strict both ways, its widths read off the tensors."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infd.config import DenoiserConfig
from infd.errors import CheckpointError
from infd.importers.mapping import take
from infd.models.denoiser import Denoiser

RES = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
       "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
HEAD = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0", "conv_out": "out.2"}
QKV = re.compile(r"(.*\.attentions\.\d+)\.to_([qkv])\.(weight|bias)")


def infer_config(state: Mapping[str, Tensor], args: Mapping[str, Any], *, prefix: str = "z_dm.") -> DenoiserConfig:
    """The network that these tensors are of. Raises KeyError naming a tensor that shapes would be read off."""
    given = args.get("z_dm", {}).get("args", {}) if isinstance(args.get("z_dm"), Mapping) else {}
    base = state[f"{prefix}input_blocks.0.0.weight"].shape[0]
    inputs = {int(found[1]) for name in state if (found := re.match(re.escape(prefix) + r"input_blocks\.(\d+)\.", name))}
    downs = sorted(int(found[1]) for name in state
                   if (found := re.match(re.escape(prefix) + r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    blocks = downs[0] - 1
    widths = [state[f"{prefix}input_blocks.{last}.0.out_layers.3.weight"].shape[0] for last in (*(at - 1 for at in downs),
                                                                                                max(inputs))]
    if widths[0] != base:
        raise CheckpointError(f"{prefix}input_blocks: {base} channels begin a level of {widths[0]}; equal ones were expected")
    return DenoiserConfig(
        widths=tuple(widths), blocks=blocks, head_dim=int(given.get("num_head_channels", 32)),
        norm_groups=int(given.get("norm_groups", args.get("norm_groups", 32))),
        z_dim=state[f"{prefix}out.2.weight"].shape[0])


def denoiser(state: Mapping[str, Tensor], config: DenoiserConfig, *, prefix: str, source: str) -> dict[str, Tensor]:
    """Tensors under `prefix` (z_dm. or z_dm_ema.) as `Denoiser.state_dict` names them. Raises CheckpointError."""
    with torch.device("meta"):
        wanted = Denoiser(config).state_dict()
    theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    split = {name: part for fused in [name for name in theirs if ".qkv." in name]
             for name, part in parts_of(fused, theirs.pop(fused), config.head_dim).items()}
    names = {ours: official_name(ours.removeprefix("net."), config) for ours in wanted}
    flat = {name: tensor[..., 0] if name.endswith("proj_out.weight") else tensor
            for name, tensor in {**theirs, **split}.items()}
    return take(flat, names, wanted, source=f"{source} ({prefix}…)", advice="use a checkpoint of the published code")


def parts_of(name: str, fused: Tensor, head_dim: int) -> dict[str, Tensor]:
    """q, k and v of one attention: channels are ordered head by head, and in each q, k, v."""
    channels = fused.shape[0] // 3
    parts = fused.reshape(channels // head_dim, 3, head_dim, *fused.shape[1:2])
    return {name.replace(".qkv.", f".qkv.{letter}."): parts[:, i].reshape(channels, *fused.shape[1:2])
            for i, letter in enumerate("qkv")}


def official_name(ours: str, config: DenoiserConfig) -> str:
    """The published name of a tensor of ours; q, k and v as `parts_of` names them."""
    for module, theirs in HEAD.items():
        if ours.startswith(f"{module}."):
            return theirs + ours.removeprefix(module)
    place, rest = placed(ours, config)
    if found := re.fullmatch(r"resnets\.(\w+)\.(weight|bias)", rest):
        return f"{place}.{RES[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"attentions\.to_([qkv])\.(weight|bias)", rest):
        return f"{place}.qkv.{found[1]}.{found[2]}"
    return f"{place}." + rest.removeprefix("attentions.").replace("group_norm", "norm").replace("to_out.0", "proj_out")


def placed(ours: str, config: DenoiserConfig) -> tuple[str, str]:
    """(published module, what is left of the name): "resnets.conv1.weight", "attentions.to_q.bias", or a sampler's conv."""
    each, levels = config.blocks + 1, len(config.widths)
    if found := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", ours):
        part = 0 if found[2] == "resnets" else 1
        return f"input_blocks.{1 + each * int(found[1]) + int(found[3])}.{part}", f"{found[2]}.{found[4]}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", ours):
        return f"input_blocks.{each * (int(found[1]) + 1)}.0.op", found[2]
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", ours):
        return f"middle_block.{1 if found[1] == 'attentions' else 2 * int(found[2])}", f"{found[1]}.{found[3]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", ours):
        part = 0 if found[2] == "resnets" else 1
        return f"output_blocks.{each * int(found[1]) + int(found[3])}.{part}", f"{found[2]}.{found[4]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", ours):
        level = int(found[1])
        return f"output_blocks.{each * level + config.blocks}.{2 if level < levels - 1 else 1}.conv", found[2]
    raise KeyError(ours)
