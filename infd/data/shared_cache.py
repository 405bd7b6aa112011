"""One folder of shards for all processes of a machine that look at photos now and then: previews, reports, the demo.

INFD_CACHE/shards or ~/.cache/infd/shards, bounded by INFD_CACHE_BYTES (20 GiB without it). Training has a cache of its
own (cache.py), which knows what comes next and waits for room; here whoever fetches deletes what was used longest ago.
"""

import fcntl
import os
import time
from contextlib import suppress

from infd import storage
from infd.config import require
from infd.data.shards import SUFFIX, require_whole
from infd.errors import DatasetError

DEFAULT_BYTES = 20 << 30
FETCHES = 3
"""Of a shard, before its object is declared damaged."""
GRACE_S = 60.0
"""What was used less long ago stays: its user may be about to open it."""
STALE_S = 24 * 3600.0
"""A write under way that is older has lost its writer."""


def folder() -> str:
    root = os.environ.get("INFD_CACHE") or os.path.join("~", ".cache", "infd")
    return os.path.join(os.path.expanduser(root), "shards")


def max_bytes() -> int:
    text = os.environ.get("INFD_CACHE_BYTES") or str(DEFAULT_BYTES)
    require(text.isascii() and text.isdigit(), "INFD_CACHE_BYTES", text, "must be a number of bytes")
    return int(text)


def fetch(uri: str, sha256: str, size: int) -> str:
    """The local path of the shard at `uri`; its bytes were checked once in this process.

    A copy that is damaged is fetched again. Law: the folder holds at most max_bytes(), and what is being fetched or was
    used in the last GRACE_S. Raises StorageError if it cannot be fetched, DatasetError if the object is damaged.
    """
    path = os.path.join(folder(), f"{sha256}{SUFFIX}")
    fetched = 0
    while True:
        if not _used_now(path, size):
            storage.get_file(uri, path)
            fetched += 1
            evict()
        try:
            require_whole(path, sha256, size)
            return path
        except DatasetError as error:
            with suppress(FileNotFoundError):
                os.unlink(path)
            if fetched >= FETCHES:
                raise DatasetError(f"shard {uri}: damaged after {fetched} fetches ({error}); the object itself is: "
                                   "restore it from a copy, or run jobs/refresh_dataset.py --repair damaged") from error


def evict() -> None:
    """Delete what was used longest ago until the rest is within bounds, and what killed processes left."""
    where, now_s, bound = folder(), time.time(), max_bytes()
    with open(f"{where}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process at a time, or each would make room for the other
        shards: list[tuple[float, int, str]] = []  # last use, bytes, path
        for entry in os.scandir(where):
            with suppress(FileNotFoundError):
                stat = entry.stat()
                if entry.name.endswith(SUFFIX):
                    shards.append((stat.st_atime, stat.st_size, entry.path))
                elif entry.name.endswith(storage.PARTIAL) and now_s - stat.st_mtime > STALE_S:
                    os.unlink(entry.path)
        held = sum(size for _, size, _ in shards)
        for used_s, size, path in sorted(shards):
            if held <= bound or now_s - used_s < GRACE_S:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            held -= size


def _used_now(path: str, size: int) -> bool:
    """True if a file of that size is there; notes its use. The time of its bytes stays, by which a check is known."""
    try:
        stat = os.stat(path)
        os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
    except FileNotFoundError:
        return False
    return stat.st_size == size
