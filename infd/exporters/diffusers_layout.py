"""A checkpoint of ours → a folder that diffusers' AutoencoderKL (kl) or VQModel (vq) loads, and the renderer beside it.

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
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from infd import checkpoint, storage
from infd.checkpoint import Checkpoint
from infd.compat import torchvision_ready
from infd.config import AutoencoderConfig
from infd.errors import CheckpointError, ConfigError, StorageError
from infd.exporters.card import model_card
from infd.generation.load import autoencoder_config, shown_weights
from infd.importers.mapping import some, take
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


def export(
    uri: str, out: str, *, licence: str = "", scaling_factor: float | None = None, replicate_padding: bool = False,
) -> str:
    """Write the checkpoint at `uri` in diffusers' layout as the folder `out`; returns `out`.

    `scaling_factor`: see `latent_notes`. `replicate_padding` allows a model of that padding, which diffusers cannot say.
    Raises CheckpointError: no such checkpoint, or not of an autoencoder; StorageError: `out` is taken.
    """
    require_free(out)
    found = checkpoint.load(uri)
    config = autoencoder_config(found)
    if config.quantizer not in ("kl", "vq"):
        raise CheckpointError(f"checkpoint {found.uri}: model.quantizer is {config.quantizer}; diffusers has a place for kl "
                              "(AutoencoderKL) and vq (VQModel) alone; export a model of one of these")
    if config.padding != "zeros" and not replicate_padding:
        raise ConfigError(f"checkpoint {found.uri}: model.padding is {config.padding}; diffusers' layers pad with zeros and "
                          "would give other latents near the border; train with --model.padding zeros, or add "
                          "--replicate-padding: the card then tells whoever loads it what to do")
    notes = latent_notes(found.meta, kl=config.quantizer == "kl", given=scaling_factor)
    peer = make_peer(config, lowres_px=int(found.meta["config"]["crop.lowres_px"]), notes=notes)
    weights, renderer = tensors(found, config, peer)
    contents = {
        WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        RENDERER: safetensors.torch.save(renderer, metadata={"format": "pt", "clif": json.dumps(clif_arguments(config))}),
    }
    contents[CARD] = model_card(
        found.meta, config, class_name=peer.class_name, licence=licence, clif=clif_arguments(config), notes=notes,
        checkpoint_sha256=found.files[checkpoint.MODEL]["sha256"], files=contents).encode()
    write_folder(out, {**contents, CONFIG: peer.config_json.encode()})
    logger.info("%s: %s of %d numbers, renderer of %d", out, peer.class_name, numbers(weights), numbers(renderer))
    return out


def require_free(out: str) -> None:
    """Raise StorageError unless the folder `out` is new or empty."""
    names = sorted(info.uri.rsplit("/", 1)[-1] for info in storage.list_objects(storage.absolute(out)))
    if names:
        raise StorageError(f"{out}: it holds files ({some('found', names)}); a new or empty folder was expected; "
                           f"name another --out, or delete it if a killed export left it without {CONFIG}")


def write_folder(out: str, contents: Mapping[str, bytes]) -> None:
    """The folder `out` with these files, the last of them last. A local folder appears whole, by a rename."""
    if storage.is_remote(out):
        *first, last = contents
        for name in first:
            storage.put_atomic(storage.join(out, name), contents[name])
        return storage.put_if_absent(storage.join(out, last), contents[last])
    path = storage.local_path(storage.absolute(out))
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:100]}.{uuid.uuid4().hex}{storage.PARTIAL}")
    try:
        for name, data in contents.items():
            storage.put_atomic(os.path.join(partial, name), data)
        os.rename(partial, path)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror}; a new or empty folder was expected; name another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def tensors(found: Checkpoint, config: AutoencoderConfig, peer: Peer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """E, Q and D under diffusers' names, its tail filled in; and R. The moving average of the weights where there is one.

    Raises CheckpointError: not a whole checkpoint.
    """
    with torch.device("meta"):
        wanted = Autoencoder(config).state_dict()
    given = shown_weights(found)
    model = take(given, {name: name for name in wanted}, wanted, source=f"checkpoint {found.uri}",
                 advice="use another checkpoint")
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
