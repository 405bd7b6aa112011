"""One worker at a time on something: a small object that its holder keeps fresh.

A holder that died is told from one that lives by watching whether the object changes, never by comparing clocks:
who finds a lease watches it for PATIENCE_S, and takes it over if it stood still.
"""

import _thread
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from infd import storage
from infd.errors import LeaseHeld, PreconditionFailed, StorageError

logger = logging.getLogger(__name__)

BEAT_S = 5.0
"""Seconds between two signs of life."""
PATIENCE_S = 30.0
"""A lease that stood still for so long is free."""


def driver_uri(uri: str) -> str:
    """The lease of whoever drives what lies at `uri`: a training run, a sweep, an encoding."""
    return storage.join(uri, "driver.json")


def holder() -> str:
    """How the leases that this process holds name it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def release(uri: str, of: str) -> None:
    """Remove the lease at `uri` if `of`, a holder that is known to be dead, has left it there, so that the next one need not
    watch it for a sign of life. Anybody else's stays."""
    try:
        if storage.exists(uri) and json.loads(storage.read_bytes(uri)).get("holder") == of:
            storage.delete(uri)
    except (StorageError, ValueError) as error:
        logger.warning("lease %s: it stays until it is stale: %s", uri, error)


@contextmanager
def held(uri: str, *, what: str, patience_s: float = PATIENCE_S, beat_s: float = BEAT_S) -> Iterator[None]:
    """Hold the lease at `uri` inside the block. Raises LeaseHeld where another holder lives, after at most patience_s.

    A holder that is cut off for longer than that and finds the lease taken is interrupted: LeaseHeld in the main
    thread. Call it there.
    """
    lease = Lease(uri, what)
    lease.take(patience_s)
    beating = threading.Thread(target=lease.beat, args=(beat_s,), name="infd-lease", daemon=True)
    beating.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lease.lost:
            raise
    finally:
        lease.ended.set()
        beating.join()
        lease.give_back()
    if lease.lost:
        raise LeaseHeld(f"{what}: {lease.lost} has taken it over, because no sign of life came from here; "
                        "what was done until then is kept; run the same command again once the other has ended")


class Lease:
    """The lease of one holder; its content changes with every sign of life."""

    def __init__(self, uri: str, what: str) -> None:
        self.uri, self.what = uri, what
        self.ended = threading.Event()
        self.lost = ""
        """Who took it from us."""
        self._holder = holder()
        self._id = uuid.uuid4().hex
        self._beats = 0
        self._etag = ""

    def take(self, patience_s: float) -> None:
        """Become the holder, or raise LeaseHeld."""
        try:
            storage.put_if_absent(self.uri, self._content())
            self._etag = storage.read_with_etag(self.uri)[1]
            return
        except PreconditionFailed:
            pass
        found, etag = self._watched(patience_s)
        try:
            storage.replace_if_unchanged(self.uri, self._content(), etag)
            self._etag = storage.read_with_etag(self.uri)[1]
        except PreconditionFailed as error:
            raise self._busy(found) from error
        logger.info("%s: its holder, %s, has gone; going on in its place", self.what, found["holder"])

    def beat(self, every_s: float) -> None:
        """Signs of life until `ended`; interrupts the main thread where another has taken over."""
        while not self.ended.wait(every_s):
            self._beats += 1
            try:
                self._renew()
            except PreconditionFailed:
                self.lost = self._reader()
                logger.error("%s: taken over by %s", self.what, self.lost)
                _thread.interrupt_main()
                return
            except StorageError as error:
                logger.warning("%s: no sign of life could be given: %s", self.what, error)

    def give_back(self) -> None:
        """Let the next one have it at once; whoever took it over keeps it."""
        try:
            if not self.lost and self._read()["id"] == self._id:
                storage.delete(self.uri)
        except StorageError as error:
            logger.warning("%s: its lease %s stays until it is stale: %s", self.what, self.uri, error)

    def _renew(self) -> None:
        try:
            storage.replace_if_unchanged(self.uri, self._content(), self._etag)
        except PreconditionFailed:
            if self._read().get("id") != self._id:      # else our own write, whose answer was lost
                raise
        data, self._etag = storage.read_with_etag(self.uri)
        if json.loads(data)["id"] != self._id:
            raise PreconditionFailed(f"{self.uri}: taken over")

    def _watched(self, patience_s: float) -> tuple[dict[str, str], str | None]:
        """The holder and etag of a lease that stood still for patience_s; etag None: it was given back meanwhile."""
        first, etag = storage.read_with_etag(self.uri) if storage.exists(self.uri) else (b"{}", None)
        found = json.loads(first)
        if etag is not None:
            logger.info("%s: %s may be at work on it; watching for %.0f s", self.what, found.get("holder"), patience_s)
        end = threading.Event()
        for _ in range(max(1, round(patience_s))):
            if etag is None:
                break
            end.wait(min(1.0, patience_s))
            if not storage.exists(self.uri):
                return found, None
            if storage.read_with_etag(self.uri)[1] != etag:
                raise self._busy(found)
        return {"holder": "an unknown process", **found}, etag

    def _busy(self, found: dict[str, str]) -> LeaseHeld:
        return LeaseHeld(f"{self.what}: {found.get('holder', 'another process')} works on it; expected nobody; wait for "
                         f"it or stop it, then run this again (its sign of life is {self.uri})")

    def _reader(self) -> str:
        try:
            return str(self._read().get("holder", "another process"))
        except StorageError:
            return "another process"

    def _read(self) -> dict[str, str]:
        return json.loads(storage.read_bytes(self.uri)) if storage.exists(self.uri) else {}

    def _content(self) -> bytes:
        return json.dumps({"holder": self._holder, "id": self._id, "beat": self._beats}).encode()
