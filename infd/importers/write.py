"""Weights made elsewhere → a checkpoint folder of ours, with their origin and licence in its meta.json."""

import logging
from typing import Any

from torch import Tensor

from infd import checkpoint, storage
from infd.config import AutoencoderTrainingConfig, flat, identity
from infd.errors import CheckpointError
from infd.importers import files, latent_diffusion, official

logger = logging.getLogger(__name__)


def import_infd(source: str, out: str, *, autoencoder_only: bool, licence: str) -> str:
    """Write stage one of the published INFD checkpoint at `source` as the checkpoint folder `out`; returns `out`.

    Raises CheckpointError where the file cannot be mapped tensor by tensor, or `out` is taken; nothing is written then.
    """
    require_free(out)
    content = official.read(source)
    found = official.autoencoder(content, autoencoder_only=autoencoder_only, source=source)
    origin = {"code": "infd", "file": name_of(source), "iter": int(content.get("iter", 0)), "licence": licence}
    return save(out, found.model, found.training, origin, source=source, dropped=found.dropped)


def import_latent_diffusion(
    source: str, out: str, *, origin: latent_diffusion.Origin, licence: str, renderer_dim: int, renderer_blocks: int,
    seed: int,
) -> str:
    """Write an autoencoder of latent diffusion, with a fresh renderer, as the checkpoint folder `out`; returns `out`.

    Raises CheckpointError where it does not fit, or `out` is taken; nothing is written then.
    """
    require_free(out)
    weights = files.read(source)
    found = latent_diffusion.autoencoder(
        weights, origin=origin, renderer_dim=renderer_dim, renderer_blocks=renderer_blocks, seed=seed)
    note = {"code": origin, "layout": found.layout, "file": name_of(weights.uri), "sha256": weights.sha256,
            "licence": licence, "latent": found.latent, "fresh": ["renderer"], "seed": seed}
    return save(out, found.model, found.training, note, source=weights.uri, dropped=found.dropped)


def require_free(out: str) -> None:
    """Raise CheckpointError where `out` holds a checkpoint already."""
    if storage.exists(storage.join(out, checkpoint.COMPLETE)):
        raise CheckpointError(f"{out}: a checkpoint is there already; an import never replaces one; name another --out")


def save(
    out: str, model: dict[str, Tensor], training: AutoencoderTrainingConfig, origin: dict[str, Any], *, source: str,
    dropped: tuple[str, ...],
) -> str:
    """The checkpoint folder `out`, at step 0; returns `out`."""
    parameters = sum(tensor.numel() for tensor in model.values())
    logger.info("%s: %d tensors, %d numbers; left out %d of the file's", source, len(model), parameters, len(dropped))
    meta = {
        "stage": "autoencoder", "preset": "", "step": 0, "g": 0, "config": flat(training), "identity": identity(training),
        "snapshot": "", "metrics": {}, "origin": {**origin, "licence": origin["licence"] or "not stated"},
    }
    checkpoint.save(out, model=model, train_state={}, meta=meta)
    return out


def name_of(uri: str) -> str:
    """The last part of an address: where a file lay here says nothing to others."""
    return uri.rstrip("/").rsplit("/", 1)[-1]
