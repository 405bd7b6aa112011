"""A process that is killed at a write to storage: it writes nothing from then on."""

from collections.abc import Callable

import pytest

from infd import storage

WRITES = ("put_atomic", "put_file", "put_if_absent", "replace_if_unchanged", "delete")


def finished_within(writes: int, run: Callable[[], object]) -> bool:
    """Whether `run()` came to its end with so many writes; else it was interrupted before the next one.

    From 0 on, each number until it says True: a crash before each write in turn.
    """
    left = writes

    def counted(write: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object) -> object:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return write(*args)
        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(storage, name, counted(getattr(storage, name)))
        try:
            run()
        except KeyboardInterrupt:
            return False
    return True
