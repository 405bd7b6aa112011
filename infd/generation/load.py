"""Checkpoints as models to use."""

from infd import checkpoint
from infd.config import AutoencoderConfig, unflat
from infd.errors import CheckpointError
from infd.models.autoencoder import Autoencoder


def load_autoencoder(uri: str, *, device: str = "cpu") -> Autoencoder:
    """The autoencoder of a checkpoint, in eval mode, without gradients.

    `uri` is a checkpoint's folder or RUN/checkpoints/last or /best. Raises CheckpointError.
    """
    found = checkpoint.load(uri)
    fields = {name.removeprefix("model."): value for name, value in found.meta["config"].items()
              if name.startswith("model.")}
    autoencoder = Autoencoder(unflat(AutoencoderConfig, fields))
    average = found.model("autoencoder_average.")                  # of a run with optimizer.ema_decay
    try:
        autoencoder.load_state_dict(average or found.model("autoencoder."))
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {found.uri}: {error}") from error
    autoencoder.lowres_px = int(found.meta["config"]["crop.lowres_px"])
    return autoencoder.to(device).eval().requires_grad_(False)
