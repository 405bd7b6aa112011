"""A local stack for tests: its own folder and ports, whatever the environment names, and nothing left behind."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra import local
from infra.state import RAY_VARIABLES, S3_VARIABLES

NAMING = {*S3_VARIABLES, *RAY_VARIABLES, "MLFLOW_TRACKING_URI", "INFD_LOCAL"}
"""Variables that would lead a test to the servers of the person who runs it."""


@contextlib.contextmanager
def environ(values: Mapping[str, str], *, without: set[str] | None = None) -> Iterator[None]:
    """`os.environ` with `values` and without `without`; as before at the end."""
    saved = dict(os.environ)
    try:
        for name in without or ():
            os.environ.pop(name, None)
        os.environ.update(values)
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextlib.contextmanager
def running_stack() -> Iterator[local.Stack]:
    """A fresh stack, with `os.environ` leading to it; stopped and removed at the end, also after a failed start."""
    root = Path(tempfile.mkdtemp(prefix="infd-stack-"))
    with environ({"INFD_LOCAL": str(root)}, without=NAMING):
        try:
            stack = local.up()
            with environ(stack.env):
                yield stack
        finally:
            local.down(root, purge=True)
            shutil.rmtree(root, ignore_errors=True)
