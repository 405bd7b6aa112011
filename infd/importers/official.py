"""Weights of the published INFD code into our checkpoints.

A published file is `{cfg, model: {name, args, sd}, optimizers, iter, …}`; stage two's file holds stage one as well.
Widths, codebook and layers are read off the tensors; only the number of norm groups, which no shape shows, comes from
the arguments (published files name none and mean 32). Names are mapped strictly, both ways.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from infd.config import (
    AutoencoderConfig,
    AutoencoderTrainingConfig,
    CropConfig,
    DiscriminatorConfig,
    LoopConfig,
    LossConfig,
)
from infd.errors import CheckpointError, ConfigError
from infd.importers.files import local_copy, torch_tree
from infd.importers.mapping import compvis_name, count, take
from infd.models.autoencoder import Autoencoder
from infd.models.discriminator import PatchDiscriminator

DROPPED = ("perc_loss.",)
"""Tensors that no checkpoint of ours holds: LPIPS is frozen and comes from its own weights."""
STAGE_TWO = ("z_dm.", "z_dm_ema.")

PARTS = (  # of a name of ours: how it begins, how the published name begins
    ("autoencoder.quantizer.", "quantizer."),
    ("autoencoder.quant_conv.", "encoder.1."),
    ("autoencoder.post_quant_conv.", "decoder.0."),
    ("autoencoder.encoder.", "encoder.0."),
    ("autoencoder.decoder.", "decoder.1."),
    ("autoencoder.renderer.conv_in.", "renderer.net.model.0."),
    ("autoencoder.renderer.", "renderer.net."),
    ("discriminator.net.", "disc.main."),
)


@dataclass(frozen=True)
class Imported:
    """Stage one of a published file under our names, and the configs that its shapes say."""

    config: AutoencoderConfig
    discriminator: DiscriminatorConfig
    model: dict[str, Tensor]
    """autoencoder.…, discriminator.…: what a checkpoint's model.safetensors holds."""
    training: AutoencoderTrainingConfig
    """The published training settings around these configs; crop sides follow the latent's side."""
    dropped: tuple[str, ...]
    """Published names that have no place in our checkpoint."""


def read(uri: str) -> dict[str, Any]:
    """The published file at `uri`, read without running any code in it. Raises CheckpointError."""
    with local_copy(uri) as path:
        content = torch_tree(path, source=uri, expected="a published checkpoint was expected; fetch it again")
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("sd"), dict) or not isinstance(model.get("args"), dict):
        raise CheckpointError(f"{uri}: no model.sd and model.args; a published INFD checkpoint has both; use that file")
    return content


def has_denoiser(content: Mapping[str, Any]) -> bool:
    """Whether a published checkpoint (see `read`) is one of stage two."""
    return any(name.startswith(STAGE_TWO) for name in content["model"]["sd"])


def autoencoder(content: Mapping[str, Any], *, source: str = "file") -> Imported:
    """Stage one of a published checkpoint (see `read`), of either stage.

    Raises CheckpointError where the networks are of another kind, and where tensors are missing, left over or of another
    shape.
    """
    state, args = content["model"]["sd"], content["model"]["args"]
    try:
        config, discriminator = infer_config(state, args), infer_discriminator(state)
        training = published_training(config, discriminator, args)
    except KeyError as error:
        raise CheckpointError(
            f"{source}: no tensor {error}; a published autoencoder with renderer and discriminator has it; "
            "use a checkpoint of that code") from error
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}; the file's tensors give this; use a published checkpoint") from error
    dropped = tuple(sorted(name for name in state if name.startswith(DROPPED + STAGE_TWO)))
    stage_one = {name: tensor for name, tensor in state.items() if name not in set(dropped)}
    return Imported(config, discriminator, renamed(stage_one, config, discriminator, source=source), training, dropped)


def renamed(
    state: Mapping[str, Tensor], config: AutoencoderConfig, discriminator: DiscriminatorConfig, *, source: str,
) -> dict[str, Tensor]:
    """Published tensors of stage one under our names. Raises CheckpointError unless names and shapes fit exactly."""
    wanted = layout(config, discriminator)
    names = {ours: official_name(ours, levels=len(config.widths)) for ours in wanted}
    return take(state, names, wanted, source=source, advice="use a checkpoint of the published code")


def layout(config: AutoencoderConfig, discriminator: DiscriminatorConfig) -> dict[str, Tensor]:
    """Names and (empty) tensors of our checkpoint for these configs; takes no memory."""
    with torch.device("meta"):
        networks = {"autoencoder": Autoencoder(config), "discriminator": PatchDiscriminator(discriminator)}
    return {f"{part}.{name}": tensor for part, network in networks.items()
            for name, tensor in network.state_dict().items()}


def official_name(ours: str, *, levels: int) -> str:
    """The published name of a tensor of ours. The published decoder counts its levels from the finest."""
    part, theirs = next((part, theirs) for part, theirs in PARTS if ours.startswith(part))
    name = compvis_name(theirs + ours.removeprefix(part), levels=levels)
    return re.sub(r"^renderer\.net\.blocks\.(\d+)", lambda m: f"renderer.net.model.{int(m[1]) + 1}", name)


# ---------------------------------------------------------------- configs from shapes


def infer_config(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> AutoencoderConfig:
    """The networks that these tensors are of. Raises KeyError naming a tensor that shapes would be read off."""
    levels = count(state, r"encoder\.0\.down\.(\d+)\.")
    quantizer: Literal["vq", "kl"] = "vq" if args.get("quantizer", True) else "kl"
    return AutoencoderConfig(
        widths=tuple(width(state, f"encoder.0.down.{level}.block.0.conv1.weight") for level in range(levels)),
        blocks=count(state, r"encoder\.0\.down\.0\.block\.(\d+)\."),
        mid_attention="encoder.0.mid.attn_1.q.weight" in state,
        z_dim=width(state, "decoder.0.weight"),
        quantizer=quantizer,
        codebook_size=width(state, "quantizer.embedding.weight") if quantizer == "vq" else 8192,
        renderer_dim=width(state, "renderer.net.model.0.weight"),
        renderer_blocks=count(state, r"renderer\.net\.model\.(\d+)\.") - 1,
        norm_groups=norm_groups(args),
    )


def infer_discriminator(state: Mapping[str, Tensor]) -> DiscriminatorConfig:
    """Base width and layers of the discriminator that these tensors are of."""
    norms = {name for name in state if re.fullmatch(r"disc\.main\.\d+\.running_mean", name)}
    return DiscriminatorConfig(base_dim=width(state, "disc.main.0.weight"), layers=len(norms))


def norm_groups(args: Mapping[str, Any]) -> int:
    """Groups of all GroupNorms; the published code has no such argument and means 32."""
    parts = (args.get("encoder", {}), args.get("decoder", {}), args.get("renderer", {}).get("args", {}).get("net", {}))
    groups = {part.get("args", {}).get("norm_groups", 32) for part in parts}
    if len(groups) != 1:
        raise CheckpointError(f"model.args: norm_groups {sorted(groups)}; one number for all parts was expected; "
                              "import a model whose parts agree")
    return groups.pop()


def published_training(
    config: AutoencoderConfig, discriminator: DiscriminatorConfig, args: Mapping[str, Any],
) -> AutoencoderTrainingConfig:
    """The published settings of stage one around these networks: patches as large as lowres, r up to 4 times that."""
    side = args["z_shape"][-1] * config.factor if "z_shape" in args else CropConfig().lowres_px
    return AutoencoderTrainingConfig(
        model=config, discriminator=discriminator,
        crop=CropConfig(patch_px=side, lowres_px=side, r_min=side, r_max=4 * side),
        loss=LossConfig(
            gan=args.get("loss_cfg", {}).get("gan_g_loss", 1.0),
            adaptive_gan_weight=args.get("adaptive_gan_weight", False), fresh_fake=True),
        loop=LoopConfig(steps=1_000_000, batch=8))


def width(state: Mapping[str, Tensor], name: str) -> int:
    return state[name].shape[0]
