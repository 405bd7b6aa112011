"""A local stack for tests: its own folder and ports, whatever the environment names, and nothing left behind."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from infra import local
from infra.services import write_private
from infra.state import NAMING, environ

T = TypeVar("T")
SESSION = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
"""Set once in conftest.py: a process keeps to the mode and the token with which it first used Ray."""
FOREIGN = set(NAMING) - SESSION
"""Variables that would lead a test to the servers of the person who runs it."""


def give_session_token(root: Path) -> None:
    """Let a stack at `root` take the test session's token."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(root / "ray_token", os.environ["RAY_AUTH_TOKEN"])


@contextlib.contextmanager
def running_stack() -> Iterator[local.Stack]:
    """A fresh stack, with `os.environ` leading to it; stopped and removed at the end, also after a failed start."""
    root = Path(tempfile.mkdtemp(prefix="infd-stack-"))
    give_session_token(root)
    with environ({"INFD_LOCAL": str(root)}, without=FOREIGN):
        try:
            stack = local.up()
            with environ(stack.env):
                yield stack
        finally:
            local.down(root, purge=True)
            shutil.rmtree(root, ignore_errors=True)


def until(condition: Callable[[], T], limit_s: float = 120.0, *, what: str | Callable[[], str] = "it",
          every_s: float = 0.02) -> T:
    """The first true answer of `condition()`; an AssertionError naming `what`, as it is then, when there is none."""
    end = time.monotonic() + limit_s
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {limit_s} s for {what if isinstance(what, str) else what()}"
        time.sleep(every_s)
    return answer


def taken(stack: local.Stack) -> dict[str, float]:
    """Name -> amount of what the stack's Ray has given away: CPUs, and all that placement groups are made of.

    Asked of its head, which takes no connection as a driver.
    """
    from ray._raylet import GcsClient

    nodes = GcsClient(address=stack.env["RAY_ADDRESS"]).get_all_resource_usage(timeout=30).resource_usage_data.batch
    amounts = [(name, total, total - node.resources_available.get(name, 0.0))
               for node in nodes for name, total in node.resources_total.items()]
    return {name: used if name == "CPU" else total for name, total, used in amounts
            if (name == "CPU" and used) or "_group_" in name}


def nothing_is_taken(stack: local.Stack, limit_s: float = 120.0) -> None:
    """Wait until what ran on the stack's Ray has given all back; AssertionError naming what it has not."""
    until(lambda: not taken(stack), limit_s, what=lambda: f"Ray to have back {taken(stack)}; {servers(stack)}", every_s=0.2)


def servers(stack: local.Stack) -> str:
    """What each server of the stack says of itself now."""
    return ", ".join(f"{part.name} {part.state}" for part in local.status(stack.root).services.values())
