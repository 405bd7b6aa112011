"""A local stack (S3 server, Ray, MLflow) for one benchmark: its own folder and ports, nothing left behind."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra import local
from infra.state import NAMING, environ


@contextlib.contextmanager
def running() -> Iterator[str]:
    """A fresh stack that `os.environ` leads to inside the block; the root of its bucket, `s3://infd`."""
    root = Path(tempfile.mkdtemp(prefix="infd-bench-"))
    with environ({"INFD_LOCAL": str(root)}, without=NAMING):
        try:
            os.environ.update(local.up().env)
            yield "s3://infd"
        finally:
            local.down(root, purge=True)
            shutil.rmtree(root, ignore_errors=True)
