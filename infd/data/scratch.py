"""Temporary folders that outlive no process by much: what a killed one left, the next one to ask removes.

Each holds a file `lock`, locked as long as its process uses it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


def claim(prefix: str) -> tuple[tempfile.TemporaryDirectory[str], IO[str]]:
    """A temporary folder, and the lock that tells it from those with that prefix that killed processes left: these are
    removed."""
    for name in os.listdir(tempfile.gettempdir()):
        left = os.path.join(tempfile.gettempdir(), name)
        if name.startswith(prefix) and (lock := _lock_now(left, "r+")) is not None:
            shutil.rmtree(left, ignore_errors=True)
            lock.close()
    while True:
        folder = tempfile.TemporaryDirectory(prefix=prefix)
        lock = _lock_now(folder.name, "w")
        if lock is not None and os.path.exists(lock.name):  # else another process just took it for a killed one's
            return folder, lock


@contextmanager
def folder(prefix: str) -> Iterator[str]:
    """The path of a claimed folder, removed at the end of the block."""
    made, lock = claim(prefix)
    with lock, made:
        yield made.name


def _lock_now(folder: str, mode: str) -> IO[str] | None:
    """The folder's lock, held while it is open; None where it cannot be had."""
    try:
        lock = open(os.path.join(folder, "lock"), mode)  # noqa: SIM115  it stays open as long as the folder is used
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except OSError:
        lock.close()
        return None
