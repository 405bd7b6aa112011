"""Image neural fields: photographs to patch shards to models that render at any resolution.

    ds = infd.open_dataset("s3://bucket/datasets/NAME")
    ae = infd.load_autoencoder("s3://bucket/…/checkpoints/best")

Exports are loaded on first use, so that importing `infd` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infd.data.snapshot import open_dataset
    from infd.generation.load import load_autoencoder

__all__ = ["load_autoencoder", "open_dataset"]

_HOMES = {"open_dataset": "infd.data.snapshot", "load_autoencoder": "infd.generation.load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'infd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
