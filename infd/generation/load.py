"""Checkpoints as models to use."""

from torch import Tensor

from infd import checkpoint
from infd.checkpoint import Checkpoint
from infd.config import AutoencoderConfig, unflat
from infd.errors import CheckpointError, ConfigError
from infd.models.autoencoder import Autoencoder


def load_autoencoder(uri: str, *, device: str = "cpu") -> Autoencoder:
    """The autoencoder of a checkpoint, in eval mode, without gradients.

    `uri` is a checkpoint's folder or RUN/checkpoints/last or /best. Raises CheckpointError.
    """
    found = checkpoint.load(uri)
    autoencoder = Autoencoder(autoencoder_config(found))
    checkpoint.put_into(f"checkpoint {found.uri}", autoencoder, shown_weights(found))
    autoencoder.lowres_px = int(found.meta["config"]["crop.lowres_px"])
    return autoencoder.to(device).eval().requires_grad_(False)


def autoencoder_config(found: Checkpoint) -> AutoencoderConfig:
    """The model's config in a checkpoint. Raises CheckpointError where it is of another stage or of another version."""
    stage = found.meta.get("stage", "autoencoder")
    if stage != "autoencoder":
        raise CheckpointError(f"checkpoint {found.uri}: it is of stage {stage}; an autoencoder was expected; "
                              "name a checkpoint of jobs/train_ae.py")
    fields = {name.removeprefix("model."): value for name, value in found.meta["config"].items() if name.startswith("model.")}
    try:
        return unflat(AutoencoderConfig, fields)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {found.uri}: model.{error}; use the version that wrote it") from error


def shown_weights(found: Checkpoint) -> dict[str, Tensor]:
    """The autoencoder's tensors: of the moving average where a run had one (optimizer.ema_decay)."""
    return found.model("autoencoder_average.") or found.model("autoencoder.")
