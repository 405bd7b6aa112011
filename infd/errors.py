"""Everything that a user or an operator can mend, as one tree.

    InfdError
    ├── ConfigError         a setting, or a combination of settings, that cannot work
    ├── StorageError        an address that cannot be read or written
    │   ├── PreconditionFailed   a conditional write lost: someone else wrote first
    │   └── Unreadable      an object that is missing, or that the store refuses to give (infd.s3_errors)
    ├── PhotoError          one source file that cannot become a photo; carries a reason code
    ├── DatasetError        a dataset, snapshot or shard that is missing or not what its manifest says
    ├── CheckpointError     a checkpoint that is missing, incomplete, or of another config
    ├── WeightsError        network weights that are missing or not what their hash says
    ├── LeaseHeld           someone else is at work on the same run or dataset
    ├── TrainingError       training that must not go on (a loss that is not finite)
    ├── Interrupted         training that was asked to stop, and has saved; the same command goes on
    └── StackError          a server of the local stack that cannot start or stop

Messages read: thing: what was found; what was expected; what to do.
"""

from collections.abc import Callable
from functools import partial


class InfdError(Exception):
    """Base of all errors that a user can mend; jobs print it in one line and exit with `exit_code`."""

    exit_code = 1


class ConfigError(InfdError):
    """A setting that cannot work. No ValueError: the command line's parser would bury those of nested configs in a box."""

    exit_code = 2


class StorageError(InfdError):
    """An address that cannot be read or written."""


class PreconditionFailed(StorageError):
    """A conditional write lost: the object exists already, or has changed since it was read."""


class PhotoError(InfdError):
    """One source file that cannot become a photo.

    `reason` is a code of `infd.data.photo.REASONS`; `detail` comes from a fixed vocabulary, never from
    a decoder's own message, so that two runs over the same file store the same row. `address` is for people:
    where given, the message starts with it.
    """

    def __init__(self, reason: str, detail: str = "", *, address: str = "") -> None:
        super().__init__(": ".join(part for part in (address, reason, detail) if part))
        self.reason = reason
        self.detail = detail
        self.address = address

    def __reduce__(self) -> tuple[Callable[..., "PhotoError"], tuple[str, str]]:
        return partial(PhotoError, address=self.address), (self.reason, self.detail)


class DatasetError(InfdError):
    """A dataset, snapshot or shard that is missing, or not what its manifest says."""


class CheckpointError(InfdError):
    """A checkpoint that is missing, incomplete, or belongs to another config."""


class WeightsError(InfdError):
    """Network weights that are missing, or not what their hash says."""


class LeaseHeld(InfdError):
    """Someone else is at work on the same run or dataset."""

    exit_code = 3


class TrainingError(InfdError):
    """Training that must not go on."""


class Interrupted(InfdError):
    """Training was asked to stop, and has saved."""

    def __init__(self, message: str, *, exit_code: int = 143) -> None:
        """`exit_code`: as of a process that the signal ended, SIGTERM unless told: schedulers and Ray start that again."""
        super().__init__(message)
        self.exit_code = exit_code


class StackError(InfdError):
    """A server of the local stack that cannot start or stop."""
