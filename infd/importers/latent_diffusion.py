"""Autoencoders of latent diffusion and Stable Diffusion as the start of a neural-field autoencoder.

E, Q and D are kept, D without its last norm and convolution; R (CLIF) is fresh. Two layouts are read: CompVis's (a
checkpoint of the autoencoder, or a whole model that holds it as first_stage_model) and diffusers' (AutoencoderKL,
VQModel). In CompVis's, all is read off the tensors, and every norm has 32 groups; in diffusers', config.json says it.
Latents are unscaled here; the factor by which a diffusion model scales them is kept as a note.
Source: Rombach et al. 2022, appendix G; INFD supplement J.1 ("converting an existing latent diffusion autoencoder").
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from infd.config import AutoencoderConfig, AutoencoderTrainingConfig, CropConfig, LoopConfig, LossConfig
from infd.errors import CheckpointError, ConfigError
from infd.importers.files import Weights
from infd.importers.mapping import compvis_name, count, plain, some, take
from infd.models.autoencoder import Autoencoder
from infd.models.renderers.clif import CLIF

Origin = Literal["ldm-vq", "sd-vae"]

FIRST_STAGE = "first_stage_model."
TAIL = ("decoder.conv_norm_out.", "decoder.norm_out.", "decoder.conv_out.")
"""D's last norm and convolution, in either layout: the renderer stands in their place."""
UNUSED = ("loss.", "model_ema.")
"""What a training checkpoint holds besides the autoencoder: LPIPS and discriminator, averaged weights."""
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""diffusers' former names of attention's layers, which published Stable Diffusion VAEs still carry."""
LATENT_NOTES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
FIXED = {
    "in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False,
    "down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D",
}
"""Of diffusers' config: what our autoencoder has no choice in."""
BOUNDS = {"layers_per_block": 64, "latent_channels": 4096, "norm_num_groups": 65536, "num_vq_embeddings": 1 << 24}
"""Largest values that a config.json may state; the least is 1."""
Z_SIDE = 64
"""Side of z that decides the side of lowres, up to 1024: 256 for f4, 512 for f8, as INFD trains them."""


@dataclass(frozen=True)
class Imported:
    """An autoencoder of others under our names, with a fresh renderer."""

    config: AutoencoderConfig
    model: dict[str, Tensor]
    """autoencoder.…: what a checkpoint's model.safetensors holds."""
    training: AutoencoderTrainingConfig
    """Settings around this model to start from."""
    layout: Literal["compvis", "diffusers"]
    dropped: tuple[str, ...]
    """Names of theirs that have no place in our checkpoint."""
    latent: dict[str, object]
    """LATENT_NOTES that their config states."""


class Given(NamedTuple):
    """The autoencoder's part of a file, in one of the two layouts."""

    layout: Literal["compvis", "diffusers"]
    state: dict[str, Tensor]
    dropped: tuple[str, ...]


def autoencoder(
    weights: Weights, *, origin: Origin, renderer_dim: int = 256, renderer_blocks: int = 2, seed: int = 0,
) -> Imported:
    """E, Q and D of `weights`, and a renderer drawn from `seed`.

    Raises CheckpointError where the autoencoder is of a kind that ours cannot be, and where tensors are missing, left
    over, of another shape, or not finite.
    """
    source = weights.uri
    given = split(weights.tensors, source=source)
    stated = diffusers_config(weights.config, source=source) if given.layout == "diffusers" else {}
    try:
        config = infer_config(given, stated, renderer_dim=renderer_dim, renderer_blocks=renderer_blocks)
        training = training_config(config)
    except KeyError as error:
        raise CheckpointError(f"{source}: missing {error.args[0]}; the config is read off it; "
                              "use a whole autoencoder") from error
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}; the file's tensors and --renderer-dim give this; "
                              "change --renderer-dim, or use another autoencoder") from error
    if origin == "sd-vae" and config.quantizer == "vq":
        raise CheckpointError(f"{source}: it has a codebook; Stable Diffusion's VAE has none; import it with --from ldm-vq")
    model = {f"autoencoder.{name}": tensor for name, tensor in
             {**kept(given, stated, config, source=source), **fresh_renderer(config, seed=seed)}.items()}
    latent = {name: stated[name] for name in LATENT_NOTES if stated.get(name) is not None}
    return Imported(config, model, training, given.layout, given.dropped, latent)


def split(tensors: Mapping[str, Tensor], *, source: str) -> Given:
    """The autoencoder's tensors without D's tail, and the names of all others."""
    prefix = FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in tensors) else ""
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(TAIL + UNUSED)}
    dropped = tuple(sorted(name for name in tensors if not name.startswith(prefix) or name.removeprefix(prefix) not in state))
    if any(re.match(r"encoder\.down\.\d+\.", name) for name in state):
        return Given("compvis", state, dropped)
    if any(re.match(r"encoder\.down_blocks\.\d+\.", name) for name in state):
        return Given("diffusers", state, dropped)
    raise CheckpointError(f"{source}: {some('tensors', sorted(tensors))}; encoder.down.… (CompVis) or encoder.down_blocks.… "
                          "(diffusers) was expected; use the file of an autoencoder")


# ---------------------------------------------------------------- configs


def diffusers_config(config: Mapping[str, Any] | None, *, source: str) -> dict[str, Any]:
    """diffusers' config of an AutoencoderKL or a VQModel; empty for None. Raises CheckpointError for what ours cannot be."""
    if config is None:
        return {}
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "VQModel"):
        raise CheckpointError(f"{source}: its config.json is of {plain(str(kind))}; AutoencoderKL or VQModel was expected; "
                              "use the folder of such an autoencoder")
    for name, expected in FIXED.items():
        found = config.get(name, expected)
        if any(value != expected for value in (found if isinstance(found, list) else [found])):
            raise CheckpointError(f"{source}: {name} is {plain(str(found))}; only {expected} has a place in our autoencoder; "
                                  "use another autoencoder")
    numbers = {name: (config[name], most) for name, most in BOUNDS.items() if name in config}
    widths = config.get("block_out_channels", [])
    widths = widths if isinstance(widths, list) else [widths]
    numbers |= {f"block_out_channels[{i}]": (width, 65536) for i, width in enumerate(widths)}
    for name, (value, most) in numbers.items():
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(f"{source}: {name} is {plain(str(value))}; a whole number from 1 to {most} was expected; "
                                  "fetch its config.json again")
    return {**config, "block_out_channels": widths}


def infer_config(
    given: Given, stated: Mapping[str, Any], *, renderer_dim: int, renderer_blocks: int,
) -> AutoencoderConfig:
    """The networks that these tensors are of; what `stated` says goes first. Raises KeyError naming a missing tensor."""
    level, block = {"compvis": ("down", "block"), "diffusers": ("down_blocks", "resnets")}[given.layout]
    levels = count(given.state, rf"encoder\.{level}\.(\d+)\.")
    name_of = namer(given, levels=levels)

    def width(ours: str, axis: int = 0) -> int:
        tensor = given.state[name_of(ours)]
        if tensor.dim() <= axis:
            raise KeyError(f"{name_of(ours)} with {axis + 1} or more axes")
        return tensor.shape[axis]

    quantizer: Literal["vq", "kl"] = "vq" if "quantize.embedding.weight" in given.state else "kl"
    if "_class_name" in stated:
        quantizer = "vq" if stated["_class_name"] == "VQModel" else "kl"
    widths = stated.get("block_out_channels") or [
        width(f"encoder.down_blocks.{level}.resnets.0.conv1.weight") for level in range(levels)]
    codes = stated.get("num_vq_embeddings") or (width("quantizer.embedding.weight") if quantizer == "vq" else 8192)
    attention = name_of("encoder.mid_block.attentions.0.to_q.weight") in given.state
    return AutoencoderConfig(
        widths=tuple(widths),
        blocks=stated.get("layers_per_block") or count(given.state, rf"encoder\.{level}\.0\.{block}\.(\d+)\."),
        mid_attention=stated.get("mid_block_add_attention", attention),
        z_dim=stated.get("latent_channels") or width("decoder.conv_in.weight", 1),
        quantizer=quantizer, codebook_size=codes,
        renderer_dim=renderer_dim, renderer_blocks=renderer_blocks, norm_groups=stated.get("norm_num_groups", 32))


def training_config(config: AutoencoderConfig) -> AutoencoderTrainingConfig:
    """The paper's training around an autoencoder; a KL of the weight that latent diffusion gives it."""
    return AutoencoderTrainingConfig(
        model=config, crop=CropConfig(lowres_px=min(Z_SIDE * config.factor, 1024)),
        loss=LossConfig(quantizer=1e-6 if config.quantizer == "kl" else 1.0),
        loop=LoopConfig(steps=1_000_000, batch=8))


# ---------------------------------------------------------------- tensors


def namer(given: Given, *, levels: int) -> Callable[[str], str]:
    """From a name of ours (without autoencoder.) to theirs."""
    old = any(".attentions.0.query." in name for name in given.state)

    def name_of(ours: str) -> str:
        name = re.sub(r"^quantizer\.", "quantize.", ours)
        if given.layout == "compvis":
            return compvis_name(name, levels=levels)
        for new, former in OLD_ATTENTION.items() if old else ():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{former}.")
        return name

    return name_of


def kept(given: Given, stated: Mapping[str, Any], config: AutoencoderConfig, *, source: str) -> dict[str, Tensor]:
    """E, Q and D under our names. 1 x 1 convolutions that their config leaves out become the identity."""
    with torch.device("meta"):
        wanted = {name: tensor for name, tensor in Autoencoder(config).state_dict().items() if not name.startswith("renderer.")}
    without = tuple(f"{name}." for name in ("quant_conv", "post_quant_conv") if not stated.get(f"use_{name}", True))
    identities = {name: identity(wanted[name]) for name in wanted if name.startswith(without)} if without else {}
    name_of = namer(given, levels=len(config.widths))
    names = {ours: name_of(ours) for ours in wanted if ours not in identities}
    advice = ("use an autoencoder of plain ResBlocks, with attention in the middle alone" if given.layout == "compvis"
              else "use a file that its config.json describes")
    return take(given.state, names, wanted, source=source, advice=advice) | identities


def identity(parameter: Tensor) -> Tensor:
    """Weight (C, C, 1, 1) or bias (C,) of a convolution that changes nothing."""
    return torch.eye(len(parameter))[:, :, None, None] if parameter.dim() == 4 else torch.zeros(len(parameter))


def fresh_renderer(config: AutoencoderConfig, *, seed: int) -> dict[str, Tensor]:
    """renderer.…: the initial weights of CLIF, a function of config and seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        renderer = CLIF.from_config(config)
    return {f"renderer.{name}": tensor for name, tensor in renderer.state_dict().items()}
