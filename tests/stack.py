"""A local stack for tests: its own folder and ports, whatever the environment names, and nothing left behind."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from infra import local
from infra.services import write_private
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
    """A fresh stack, with `os.environ` leading to it; stopped and removed at the end, also after a failed start.

    It takes the test session's token: a process that once used Ray keeps to the mode and the token that it began with.
    """
    root = Path(tempfile.mkdtemp(prefix="infd-stack-"))
    if os.environ.get("RAY_AUTH_TOKEN"):
        write_private(root / "ray_token", os.environ["RAY_AUTH_TOKEN"])
    with environ({"INFD_LOCAL": str(root)}, without=NAMING):
        try:
            stack = local.up()
            with environ(stack.env):
                yield stack
        finally:
            local.down(root, purge=True)
            shutil.rmtree(root, ignore_errors=True)


def until(condition: Callable[[], object], limit_s: float = 120.0) -> None:
    """Return as soon as `condition()` holds; an AssertionError when it never does."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.02)
