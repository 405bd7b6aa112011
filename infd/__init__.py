"""Image neural fields: photographs to patch shards to models that render at any resolution.

    ds = infd.open_dataset("s3://bucket/datasets/NAME")
    ae = infd.load_autoencoder("s3://bucket/…/checkpoints/best")
    field = infd.load_model("models:/ldm-tiny-44c7d227@best").sample(seed=7)

Exports are loaded on first use, so that importing `infd` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infd.data.snapshot import open_dataset
    from infd.generation.load import load_autoencoder
    from infd.generation.model import load_model

__all__ = ["load_autoencoder", "load_model", "open_dataset"]

_HOMES = {"open_dataset": "infd.data.snapshot", "load_autoencoder": "infd.generation.load",
          "load_model": "infd.generation.model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'infd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
