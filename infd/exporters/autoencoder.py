"""An autoencoder of ours as files that diffusers' AutoencoderKL (kl) or VQModel (vq) loads, and the renderer beside them.

    config.json                             written last: without it the folder does not load
    diffusion_pytorch_model.safetensors     E, Q, D under diffusers' names; D's last norm and convolution are not ours
    renderer.safetensors                    R (CLIF); its sides are in the file's metadata
    README.md                               the model card

Our D ends in phi: it has neither the last norm nor the last convolution that diffusers' decoder needs to load. The norm
is written as 1 and 0, the convolution as zeros, so that `decode` gives plain grey instead of an image that looks like
one. Law: the encoder that diffusers loads gives the same latents as ours.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from infd import checkpoint
from infd.checkpoint import Checkpoint
from infd.compat import torchvision_ready
from infd.config import AutoencoderConfig
from infd.errors import CheckpointError, ConfigError
from infd.exporters.card import model_card
from infd.generation.load import autoencoder_config, shown_weights
from infd.importers.mapping import take
from infd.models.autoencoder import Autoencoder

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, RENDERER, CARD = "config.json", "diffusion_pytorch_model.safetensors", "renderer.safetensors", "README.md"
TAIL = {"decoder.conv_norm_out.weight": 1.0, "decoder.conv_norm_out.bias": 0.0,
        "decoder.conv_out.weight": 0.0, "decoder.conv_out.bias": 0.0}
"""What is written in the place of the layers that our D has not."""


@dataclass(frozen=True)
class Peer:
    """diffusers' own model of the same E, Q and D, without values."""

    class_name: str
    config_json: str
    layout: dict[str, Tensor]


def contents(
    found: Checkpoint, *, licence: str, scaling_factor: float | None, replicate_padding: bool,
) -> dict[str, bytes]:
    """The files of a stage-one checkpoint, the last to be written last. Raises CheckpointError, ConfigError."""
    config = autoencoder_config(found)
    require_place(config, found.uri, replicate_padding=replicate_padding)
    notes = latent_notes(found.meta, kl=config.quantizer == "kl", given=scaling_factor)
    class_name, files = component(
        config, whole_weights(found, config), lowres_px=int(found.meta["config"]["crop.lowres_px"]), notes=notes)
    config_json = files.pop(CONFIG)
    card = model_card(
        found.meta, config, class_name=class_name, licence=licence, clif=clif_arguments(config), notes=notes,
        checkpoint_sha256=found.files[checkpoint.MODEL]["sha256"], files=files)
    return {**files, CARD: card.encode(), CONFIG: config_json}


def require_place(config: AutoencoderConfig, uri: str, *, replicate_padding: bool) -> None:
    """Raise CheckpointError where diffusers has no such model, ConfigError where it pads otherwise and nobody allowed it."""
    if config.quantizer not in ("kl", "vq"):
        raise CheckpointError(f"checkpoint {uri}: model.quantizer is {config.quantizer}; diffusers has a place for kl "
                              "(AutoencoderKL) and vq (VQModel) alone; export a model of one of these")
    if config.padding != "zeros" and not replicate_padding:
        raise ConfigError(f"checkpoint {uri}: model.padding is {config.padding}; diffusers' layers pad with zeros and "
                          "would give other latents near the border; train with --model.padding zeros, or add "
                          "--replicate-padding: the card then tells whoever loads it what to do")


def component(
    config: AutoencoderConfig, weights: Mapping[str, Tensor], *, lowres_px: int, notes: Mapping[str, object],
) -> tuple[str, dict[str, bytes]]:
    """Name of diffusers' class, and its files with the renderer's; `weights` as `Autoencoder.state_dict` names them."""
    peer = make_peer(config, lowres_px=lowres_px, notes=notes)
    theirs, renderer = parted(weights, peer)
    logger.info("%s of %d numbers, renderer of %d", peer.class_name, numbers(theirs), numbers(renderer))
    return peer.class_name, {
        WEIGHTS: safetensors.torch.save(theirs, metadata={"format": "pt"}),
        RENDERER: safetensors.torch.save(renderer, metadata={"format": "pt", "clif": json.dumps(clif_arguments(config))}),
        CONFIG: peer.config_json.encode()}


def latent_notes(meta: Mapping[str, Any], *, kl: bool, given: float | None) -> dict[str, object]:
    """How a diffusion model scales the latents, for config.json.

    The factor given; else what the starting weights' config says, if their encoder is still the same; else 1: nobody
    has measured it.
    """
    if given is not None:
        return {"scaling_factor": given}
    same_encoder = meta.get("step") == 0 or "encoder" in meta["config"].get("freeze", ())
    known = meta.get("origin", {}).get("latent", {}) if same_encoder else {}
    return {"scaling_factor": 1.0, **{name: value for name, value in known.items() if kl or name == "scaling_factor"}}


def make_peer(config: AutoencoderConfig, *, lowres_px: int, notes: Mapping[str, object]) -> Peer:
    """diffusers' AutoencoderKL or VQModel of this config; takes no memory."""
    torchvision_ready()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    levels = len(config.widths)
    common: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.widths), "layers_per_block": config.blocks, "latent_channels": config.z_dim,
        "norm_num_groups": config.norm_groups, "mid_block_add_attention": config.mid_attention, "sample_size": lowres_px,
        **notes,
    }
    with torch.device("meta"):
        model = AutoencoderKL(**common) if config.quantizer == "kl" else VQModel(
            **common, num_vq_embeddings=config.codebook_size, vq_embed_dim=config.z_dim)
    return Peer(type(model).__name__, model.to_json_string(), model.state_dict())


def whole_weights(found: Checkpoint, config: AutoencoderConfig) -> dict[str, Tensor]:
    """E, Q, D and R, as `Autoencoder.state_dict` names them; the moving average where there is one.

    Raises CheckpointError: not a whole checkpoint.
    """
    with torch.device("meta"):
        wanted = Autoencoder(config).state_dict()
    return take(shown_weights(found), {name: name for name in wanted}, wanted, source=f"checkpoint {found.uri}",
                advice="use another checkpoint")


def parted(model: Mapping[str, Tensor], peer: Peer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """E, Q and D under diffusers' names, its tail filled in; and R."""
    renderer = {name.removeprefix("renderer."): tensor for name, tensor in model.items() if name.startswith("renderer.")}
    weights = {name.replace("quantizer.", "quantize."): tensor for name, tensor in model.items()
               if not name.startswith("renderer.")}
    weights |= {name: torch.full(peer.layout[name].shape, value) for name, value in TAIL.items()}
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in peer.layout.items()}:
        raise AssertionError(f"{peer.class_name} has other tensors than ours")
    return weights, renderer


def clif_arguments(config: AutoencoderConfig) -> dict[str, int]:
    """Keywords of `infd.models.renderers.clif.CLIF` for this renderer."""
    return {"phi_dim": config.phi_dim, "dim": config.renderer_dim, "blocks": config.renderer_blocks,
            "groups": config.norm_groups}


def numbers(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
