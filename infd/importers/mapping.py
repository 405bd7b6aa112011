"""Tensors of others under our names: strict both ways, so that nothing is missing and nothing is left over.

E and D carry diffusers' names here. CompVis's latent diffusion, and INFD after it, name the same layers otherwise.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from infd.errors import CheckpointError

NAMED = 8
"""At most this many tensors are named in a message."""

COMPVIS = (  # of a name of E or D, in this order: pattern, CompVis's name
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


def compvis_name(ours: str, *, levels: int) -> str:
    """CompVis's name of a tensor of E or D. Its decoder counts the levels from the finest."""
    name = ours
    for pattern, replacement in COMPVIS:
        name = re.sub(pattern, replacement, name)
    up = re.fullmatch(r"(.*)\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.+)", name)
    if up:
        part = {"resnets": "block", "upsamplers.0": "upsample"}[up[3]]
        name = f"{up[1]}.up.{levels - 1 - int(up[2])}.{part}.{up[4]}"
    return name


def take(
    state: Mapping[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, Tensor], *, source: str, advice: str,
) -> dict[str, Tensor]:
    """Copies of the tensors of `state` under our names, in our shapes and types.

    names: ours → theirs; wanted: ours → a tensor of the right shape and type. Raises CheckpointError that lists what is
    missing and left over, or of another shape, or not finite; it ends in `advice`.
    """
    missing, left = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or left:
        raise CheckpointError(f"{source}: {some('missing', missing)}, {some('left over', left)}; "
                              f"every tensor must map; {advice}")
    found = {ours: as_ours(state[name], wanted[ours]) for ours, name in names.items()}
    wrong = [f"{names[ours]} {tuple(state[names[ours]].shape)}, expected {tuple(wanted[ours].shape)}"
             for ours, tensor in found.items() if tensor.shape != wanted[ours].shape]
    if wrong:
        raise CheckpointError(f"{source}: {some('shapes', wrong)}; the other tensors give these; {advice}")
    broken = [names[ours] for ours, tensor in found.items() if not tensor.is_meta and not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source}: {some('not finite', broken)}; weights are finite numbers; {advice}")
    return found


def as_ours(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A copy in the wanted type; attention's 1 x 1 convolutions (C, C, 1, 1) are linear layers (C, C) here."""
    if wanted.dim() == 2 and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)
    return tensor.to(wanted.dtype).clone()


def count(names: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the pattern's group takes over all names. Raises KeyError(pattern) for none."""
    found = {match[1] for name in names if (match := re.match(pattern, name))}
    if not found:
        raise KeyError(pattern)
    return len(found)


def some(what: str, names: list[str]) -> str:
    """`missing 12 (a, b, … )`: a count, and the first few."""
    more = ", …" if len(names) > NAMED else ""
    return f"{what} {len(names)}" + (f" ({', '.join(plain(name) for name in names[:NAMED])}{more})" if names else "")


def plain(text: str) -> str:
    """Text of a stranger's file, fit for one line of a terminal."""
    return text[:200] if text.isprintable() else ascii(text[:200])
