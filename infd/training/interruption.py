"""A wish that training stops: SIGTERM, as a spot machine, a scheduler or `kill` sends it, or a first Ctrl+C in a terminal.

Training saves, then leaves. A second Ctrl+C ends it at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_wished, _heeded, _typed = threading.Event(), threading.Event(), threading.Event()
SAVING = b"stopping: this step is finished and saved; Ctrl+C again leaves at once\n"


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
    """Whether a signal has come inside `heeding`."""
    return _wished.is_set()


def exit_code() -> int:
    """As a shell gives it for the signal of the wish: 130 after Ctrl+C, else 143."""
    return 130 if _typed.is_set() else 143


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Inside the block a process that listens takes SIGTERM as the wish."""
    _wished.clear()
    _typed.clear()
    _heeded.set()
    try:
        yield
    finally:
        _heeded.clear()
        _wished.clear()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listen and heed inside the block, to a first Ctrl+C too, in the main thread; afterwards all is as it was."""
    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def typed(number: int, frame: object) -> None:
        if _wished.is_set() or not _heeded.is_set():
            interrupt(number, frame)  # pyright: ignore
        os.write(2, SAVING)                                 # a handler may not log: the thread it interrupts may hold the lock
        _typed.set()
        _wished.set()

    listen()
    if callable(interrupt):                                 # a shell has programs in the background ignore it
        signal.signal(signal.SIGINT, typed)
    try:
        with heeding():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
