"""A local folder of shards fetched from a bucket: bounded in bytes, each file checked once, least recently used out first."""

import fcntl
import os
import re
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import IO

from infd import s3, storage
from infd.data import scratch
from infd.data.shards import SUFFIX
from infd.data.snapshot import ShardEntry
from infd.errors import DatasetError, StorageError

NAME = re.compile(rf"([0-9a-f]{{64}}){re.escape(SUFFIX)}")
TEMPORARY = "infd-shards-"
ATTEMPTS = 3
"""Fetches of a shard before its bytes are declared wrong."""


class ShardCache:
    """Local copies of shards. May be used from several threads.

    Under `folder` every process takes a subfolder of its own and holds it by a lock, so that none deletes what another
    reads; its shards are found again (and checked again) by the next run. An empty `folder` means a temporary one that
    `close` removes; what a killed process left of such folders the next one removes. `uri_of` gives a shard's address;
    `on_evict` is told before a shard is deleted.

    Law: the folder holds at most `max_bytes`, save where shards in use at the same time need more.
    """

    def __init__(
        self,
        folder: str,
        *,
        max_bytes: int,
        uri_of: Callable[[ShardEntry], str],
        on_evict: Callable[[str], None] = lambda sha256: None,
    ) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        """Uses that found their shard here."""
        self.misses = 0
        """Uses that had to wait for a fetch."""
        self.fetched_bytes = 0
        self._uri_of = uri_of
        self._on_evict = on_evict
        self._lock = threading.Lock()
        self._ready: OrderedDict[str, int] = OrderedDict()  # sha256 → bytes, least recently used first
        self._unchecked: set[str] = set()  # of `_ready`: left by an earlier run
        self._coming: dict[str, Future[None]] = {}  # being fetched or checked
        self._held = 0  # bytes of `_ready` and `_coming`
        self._in_use: Counter[str] = Counter()
        self._stop = threading.Event()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if folder:
            self.folder, self._claim = claim_subfolder(folder)
            self._find_left()
        else:
            self._temporary, self._claim = scratch.claim(TEMPORARY)
            self.folder = self._temporary.name

    @contextmanager
    def use(self, shard: ShardEntry) -> Iterator[str]:
        """The local path of `shard`, fetched if need be, and kept until the block ends.

        Raises StorageError if it cannot be fetched, DatasetError if its bytes are not those of the manifest.
        """
        self._take(shard, counted=True)
        try:
            yield self.path(shard)
        finally:
            self._give(shard)

    def fetch(self, shard: ShardEntry) -> str:
        """The local path of `shard`, fetched if need be; it may be evicted at any time after."""
        self._take(shard, counted=False)
        self._give(shard)
        return self.path(shard)

    def path(self, shard: ShardEntry) -> str:
        """Where `shard` lies, or will."""
        return self._path(shard.sha256)

    @property
    def held_bytes(self) -> int:
        """Bytes of the shards here and of those that are coming."""
        with self._lock:
            return self._held

    def stop(self) -> None:
        """Let fetches that are under way, or waiting for a store that is gone, fail soon; `close` comes next."""
        self._stop.set()

    def close(self) -> None:
        """Remove a temporary folder; leave a lasting one to the next process. Twice does nothing."""
        self.stop()
        with self._lock:
            gone = list(self._ready) if self._temporary is not None else []
            self._ready.clear()
            self._held = 0
        for sha256 in gone:
            self._on_evict(sha256)
        if self._temporary is not None:
            self._temporary.cleanup()
        self._claim.close()

    def _path(self, sha256: str) -> str:
        return os.path.join(self.folder, f"{sha256}{SUFFIX}")

    def _take(self, shard: ShardEntry, *, counted: bool) -> None:
        key = shard.sha256
        with self._lock:
            here = key in self._ready and key not in self._unchecked
            if here and not self._whole(shard):  # someone tidied up
                here = False
                self._on_evict(key)
            self.hits += counted and here
            self.misses += counted and not here
            self._in_use[key] += 1
            if here:
                self._ready.move_to_end(key)
                return
            first = key not in self._coming
            if first:
                self._held -= self._ready.pop(key, 0)
                self._make_room(shard.bytes)
                self._held += shard.bytes
                self._coming[key] = Future()
            done = self._coming[key]
        try:
            if first:
                self._bring(shard, done)
            done.result()
        except BaseException:
            self._give(shard)
            raise

    def _whole(self, shard: ShardEntry) -> bool:
        try:
            return os.path.getsize(self.path(shard)) == shard.bytes
        except FileNotFoundError:
            return False

    def _give(self, shard: ShardEntry) -> None:
        with self._lock:
            self._in_use[shard.sha256] -= 1
            if not self._in_use[shard.sha256]:
                del self._in_use[shard.sha256]
            self._make_room(0)

    def _bring(self, shard: ShardEntry, done: Future[None]) -> None:
        """Fetch or check `shard`; tell those who wait by `done`."""
        key = shard.sha256
        error: BaseException | None = None
        try:
            self._fetch_checked(shard, left=key in self._unchecked)
        except BaseException as caught:
            error = caught
        with self._lock:
            self._unchecked.discard(key)
            del self._coming[key]
            if error is None:
                self._ready[key] = shard.bytes
            else:
                self._held -= shard.bytes
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def _fetch_checked(self, shard: ShardEntry, *, left: bool) -> None:
        path, uri = self.path(shard), self._uri_of(shard)
        if left:
            with suppress(FileNotFoundError):
                if storage.file_sha256(path) == shard.sha256:
                    return
                os.unlink(path)
        found = ""
        for _ in range(ATTEMPTS):
            with s3.given_up_by(self._stop):
                storage.get_file(uri, path)
            found = storage.file_sha256(path)
            if found == shard.sha256:
                with self._lock:
                    self.fetched_bytes += shard.bytes
                return
            os.unlink(path)
        raise DatasetError(
            f"shard {uri}: sha256 {found} after {ATTEMPTS} fetches; the manifest says {shard.sha256}; "
            f"the object is damaged: restore it from a copy, or run jobs/refresh_dataset.py --repair damaged")

    def _make_room(self, more: int) -> None:
        """Evict what was used longest ago and is not in use, until `more` bytes fit. Call with the lock held."""
        if self._held + more <= self.max_bytes:
            return
        for key in list(self._ready):
            if key not in self._in_use:
                self._held -= self._ready.pop(key)
                self._unchecked.discard(key)
                self._on_evict(key)
                with suppress(FileNotFoundError):
                    os.unlink(self._path(key))
            if self._held + more <= self.max_bytes:
                return

    def _find_left(self) -> None:
        """Take over the shards of an earlier run, oldest first, and remove its unfinished files."""
        entries = sorted(os.scandir(self.folder), key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
        for entry in entries:
            if match := NAME.fullmatch(entry.name):
                self._ready[match[1]] = entry.stat().st_size
                self._held += entry.stat().st_size
                self._unchecked.add(match[1])
            elif entry.name.endswith(storage.PARTIAL):
                os.unlink(entry.path)
        with self._lock:
            self._make_room(0)


def claim_subfolder(folder: str) -> tuple[str, IO[str]]:
    """The first `worker-N` of `folder` that no living process holds, and the lock that holds it while it is open."""
    number = 0
    while True:
        path = os.path.join(folder, f"worker-{number}")
        try:
            os.makedirs(path, exist_ok=True)
            lock = open(os.path.join(path, "lock"), "w")  # noqa: SIM115  it stays open as long as the cache
        except OSError as error:
            raise StorageError(f"loader.cache_dir={folder}: {error.strerror}; expected a folder to write in") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return path, lock
        except BlockingIOError:
            lock.close()
            number += 1
