"""A wish that training stops: SIGTERM, as a spot machine, a scheduler or `kill` sends it. Training saves, then leaves."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_wished, _heeded = threading.Event(), threading.Event()


def listen() -> None:
    """Take SIGTERM as the wish while someone heeds it; else it does what it did before.

    More of them change nothing: launchers send several, and a checkpoint is being written by then. Only in the main thread,
    as Python has it; `heeding` may be in any.
    """
    before = signal.getsignal(signal.SIGTERM)

    def heard(number: int, frame: object) -> None:
        if _heeded.is_set():
            _wished.set()
        elif callable(before):
            before(number, frame)  # pyright: ignore[reportArgumentType]
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, heard)


def wished() -> bool:
    """Whether SIGTERM has come inside `heeding`."""
    return _wished.is_set()


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Inside the block a process that listens takes SIGTERM as the wish."""
    _wished.clear()
    _heeded.set()
    try:
        yield
    finally:
        _heeded.clear()
        _wished.clear()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listen and heed inside the block, in the main thread; afterwards all is as it was."""
    before = signal.getsignal(signal.SIGTERM)
    listen()
    try:
        with heeding():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
