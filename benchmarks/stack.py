"""A local stack (S3 server, Ray, MLflow) for one benchmark: its own folder and ports, nothing left behind."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra import local
from infra.state import RAY_VARIABLES, S3_VARIABLES

NAMING = (*S3_VARIABLES, *RAY_VARIABLES, "MLFLOW_TRACKING_URI", "INFD_LOCAL")
"""Variables that would lead a benchmark to somebody's own servers."""


@contextlib.contextmanager
def environ(values: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` with `values` and without NAMING; as before at the end."""
    saved = dict(os.environ)
    try:
        for name in NAMING:
            os.environ.pop(name, None)
        os.environ.update(values)
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextlib.contextmanager
def running() -> Iterator[str]:
    """A fresh stack that `os.environ` leads to inside the block; the root of its bucket, `s3://infd`."""
    root = Path(tempfile.mkdtemp(prefix="infd-bench-"))
    with environ({"INFD_LOCAL": str(root)}):
        try:
            os.environ.update(local.up().env)
            yield "s3://infd"
        finally:
            local.down(root, purge=True)
            shutil.rmtree(root, ignore_errors=True)
