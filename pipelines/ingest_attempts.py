"""Photos that end the process which reads them (a crash in a decoder, a kill for its memory) are found and left out.

Ray starts a task whose worker died again, for ever, and cannot say which file it was at. So a unit that is at work has a
record, and a unit that finds its own was at work before:

    DATASET/runs/RUN/attempts/00000003.json   {"session": …, "at": uri, "deaths": {uri: 1}}

The first attempt writes it once, a request a unit. Later ones write it before each file, so that the next knows where they
died; a file at which DEATHS of them did is a reject, `killed`. A session is one life of the driver: deaths of another are
not counted, because whoever killed the driver killed its workers too, whatever they were reading.
"""

import json
from dataclasses import dataclass, field

from infd import storage
from infd.errors import PhotoError, PreconditionFailed

DEATHS = 2
"""At one file, of attempts that named it; the first attempt names none, so a worker more has died by then."""


@dataclass(kw_only=True)
class Attempt:
    """One try at a unit."""

    uri: str
    """Of the record; empty: nobody would read it, because this process has no driver that outlives it."""
    session: str = ""
    is_first: bool = True
    deaths: dict[str, int] = field(default_factory=dict)

    def at(self, file: str) -> None:
        """To be called before `file` is read. Raises PhotoError for one that has ended too many processes."""
        if self.deaths.get(file, 0) >= DEATHS:
            raise PhotoError("killed", f"{DEATHS} times")
        if not self.is_first:
            storage.put_atomic(self.uri, self.content(file))

    def content(self, file: str = "") -> bytes:
        return json.dumps({"session": self.session, "at": file, "deaths": self.deaths}, sort_keys=True).encode()

    def finish(self) -> None:
        """The unit is done."""
        if self.uri:
            storage.delete(self.uri)


def begin(run_uri: str, number: int, session: str) -> Attempt:
    """Say that this process is at work on a unit; who was before, and died, is remembered."""
    if not session:
        return Attempt(uri="")
    attempt = Attempt(uri=record_uri(run_uri, number), session=session)
    try:
        storage.put_if_absent(attempt.uri, attempt.content())
    except PreconditionFailed:
        attempt.is_first = False
        before = json.loads(storage.read_bytes(attempt.uri)) if storage.exists(attempt.uri) else {}  # done meanwhile
        if before.get("session") == session:
            attempt.deaths = before["deaths"]
            if before["at"]:
                attempt.deaths[before["at"]] = attempt.deaths.get(before["at"], 0) + 1
    return attempt


def record_uri(run_uri: str, number: int) -> str:
    return storage.join(run_uri, "attempts", f"{number:08d}.json")
