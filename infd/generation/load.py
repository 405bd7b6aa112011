"""Checkpoints as models to use."""

from torch import Tensor

from infd import checkpoint
from infd.checkpoint import Checkpoint
from infd.config import AutoencoderConfig, ConfigT, DenoiserConfig
from infd.config_form import seen_px, unflat
from infd.errors import CheckpointError, ConfigError
from infd.generation.registry import resolve
from infd.models.autoencoder import Autoencoder


def load_autoencoder(uri: str, *, device: str = "cpu") -> Autoencoder:
    """The autoencoder of a checkpoint, in eval mode, without gradients.

    `uri` is a checkpoint's folder, RUN/checkpoints/last or /best, or models:/NAME@best of MLflow's registry. Raises
    CheckpointError.
    """
    found = checkpoint.load(resolve(uri))
    autoencoder = Autoencoder(autoencoder_config(found))
    checkpoint.put_into(f"checkpoint {found.uri}", autoencoder, shown_weights(found))
    autoencoder.lowres_px = int(found.meta["config"]["crop.lowres_px"])
    autoencoder.patch_px = seen_px(found.meta["config"])
    return autoencoder.to(device).eval().requires_grad_(False)


def autoencoder_config(found: Checkpoint) -> AutoencoderConfig:
    """The model's config in a checkpoint. Raises CheckpointError where it is of another stage or of another version."""
    stage = found.meta.get("stage", "autoencoder")
    if stage != "autoencoder":
        raise CheckpointError(f"checkpoint {found.uri}: it is of stage {stage}; an autoencoder was expected; "
                              "name a checkpoint of jobs/train_ae.py")
    return config_of(found, AutoencoderConfig, "model.")


def denoiser_config(found: Checkpoint) -> DenoiserConfig:
    """The denoiser's config in a checkpoint of stage two. Raises CheckpointError where it is of another stage or version."""
    if (stage := found.meta.get("stage", "autoencoder")) != "latent_diffusion":
        raise CheckpointError(f"checkpoint {found.uri}: it is of stage {stage}; a denoiser was expected; "
                              "name a checkpoint of jobs/train_ldm.py")
    return config_of(found, DenoiserConfig, "model.")


def config_of(found: Checkpoint, kind: type[ConfigT], prefix: str) -> ConfigT:
    """The part of a checkpoint's config whose fields begin with `prefix`."""
    fields = {name.removeprefix(prefix): value for name, value in found.meta["config"].items() if name.startswith(prefix)}
    try:
        return unflat(kind, fields)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {found.uri}: {prefix}{error}; use the version that wrote it") from error


def shown_weights(found: Checkpoint) -> dict[str, Tensor]:
    """The autoencoder's tensors: of the moving average where a run had one (optimizer.ema_decay)."""
    return found.model("autoencoder_average.") or found.model("autoencoder.")
