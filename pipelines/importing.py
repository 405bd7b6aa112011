"""Weights made by other code into checkpoints of ours."""

import logging

from infd import checkpoint
from infd.config import flat, identity
from infd.importers import official

logger = logging.getLogger(__name__)


def import_official(source: str, out: str, *, autoencoder_only: bool) -> str:
    """Write stage one of the published checkpoint at `source` as a checkpoint folder `out`; returns `out`.

    Raises CheckpointError where the file cannot be mapped tensor by tensor; nothing is written then.
    """
    content = official.read(source)
    found = official.autoencoder(content, autoencoder_only=autoencoder_only, source=source)
    parameters = sum(tensor.numel() for tensor in found.model.values())
    logger.info("%s: %d tensors, %d numbers; left out %d", source, len(found.model), parameters, len(found.dropped))
    meta = {
        "stage": "autoencoder", "preset": "", "step": 0, "g": 0,
        "config": flat(found.training), "identity": identity(found.training), "snapshot": "", "metrics": {},
        "origin": {"file": source.rsplit("/", 1)[-1], "code": "infd", "iter": int(content.get("iter", 0))},
    }
    checkpoint.save(out, model=found.model, train_state={}, meta=meta)
    return out
