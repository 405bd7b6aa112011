"""Weights made elsewhere → a checkpoint folder of ours, with their origin and licence in its meta.json."""

import logging
from typing import Any

from torch import Tensor

from infd import checkpoint, storage
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LoopConfig
from infd.config_form import flat, identity
from infd.errors import CheckpointError
from infd.importers import denoiser, files, latent_diffusion, official

logger = logging.getLogger(__name__)


def import_infd(source: str, out: str, *, autoencoder_only: bool, licence: str) -> str:
    """Write the published INFD checkpoint at `source` as the checkpoint folder `out`; returns `out`. One of stage two becomes
    one of stage two, which holds the autoencoder too; with `autoencoder_only` the latter alone.

    Raises CheckpointError where the file cannot be mapped tensor by tensor, or `out` is taken; nothing is written then.
    """
    require_free(out)
    content = official.read(source)
    found = official.autoencoder(content, source=source)
    origin = {"code": "infd", "file": name_of(source), "iter": int(content.get("iter", 0)), "licence": licence}
    if official.has_denoiser(content) and not autoencoder_only:
        return save_denoiser(out, content, found, origin, source=source)
    return save(out, found.model, found.training, origin, source=source, dropped=found.dropped)


def save_denoiser(out: str, content: dict[str, Any], found: official.Imported, origin: dict[str, Any], *, source: str) -> str:
    """The checkpoint folder of a published stage two, at step 0; returns `out`."""
    state, crop = content["model"]["sd"], found.training.crop
    try:
        model = denoiser.infer_config(state, content["model"]["args"])
    except KeyError as error:
        raise CheckpointError(f"{source}: no tensor {error}; the published denoiser has it; use a checkpoint of that "
                              "code") from error
    tensors = {name: value for name, value in found.model.items() if name.startswith("autoencoder.")}
    for ours, theirs in (("denoiser", "z_dm."), ("denoiser_average", "z_dm_ema.")):
        if any(name.startswith(theirs) for name in state):
            part = denoiser.denoiser(state, model, prefix=theirs, source=source)
            tensors |= {f"{ours}.{name}": value for name, value in part.items()}
    training = DiffusionTrainingConfig(model=model, loop=LoopConfig(steps=600_000, batch=48))
    beside = {"config": flat(found.config), "lowres_px": crop.lowres_px, "patch_px": crop.patch_px}
    dropped = tuple(name for name in found.dropped if not name.startswith(official.STAGE_TWO))
    return save(out, tensors, training, origin, source=source, dropped=dropped, stage="latent_diffusion",
                autoencoder=beside, groups=[])


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
    out: str, model: dict[str, Tensor], training: AutoencoderTrainingConfig | DiffusionTrainingConfig,
    origin: dict[str, Any], *, source: str, dropped: tuple[str, ...], stage: str = "autoencoder", **facts: Any,
) -> str:
    """The checkpoint folder `out`, at step 0; returns `out`."""
    parameters = sum(tensor.numel() for tensor in model.values())
    logger.info("%s: %d tensors, %d numbers; left out %d of the file's", source, len(model), parameters, len(dropped))
    meta = {
        "stage": stage, **facts, "preset": "", "step": 0, "g": 0, "config": flat(training), "identity": identity(training),
        "snapshot": "", "metrics": {}, "origin": {**origin, "licence": origin["licence"] or "not stated"},
    }
    checkpoint.save(out, model=model, train_state={}, meta=meta)
    return out


def name_of(uri: str) -> str:
    """The last part of an address: where a file lay here says nothing to others."""
    return uri.rstrip("/").rsplit("/", 1)[-1]
