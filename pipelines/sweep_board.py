"""A sweep's board: one small actor on which workers write how far their trial is, and which the sweep reads.

Training never waits for it, and it keeps nothing: what a sweep knows for good lies in the trials' folders. Its process imports
this module alone, and no torch.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

    from infd.training.alarms import Alarm

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
Row = tuple[int, Metrics]
"""Step and figures."""


class Driver(NamedTuple):
    """What drives a trial: the handle of its actor, and who holds the lease of the trial's run meanwhile."""

    actor: Any
    holder: str


class Board:
    """By the trial's number: what it is to do, who drives it, its newest figures, figures at checkpoints not yet taken, why it
    failed."""

    def __init__(self) -> None:
        self.closed = False
        self.drivers: dict[int, Driver] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.newest: dict[int, Row] = {}
        self.checkpoints: dict[int, list[Row]] = {}
        self.errors: dict[int, str] = {}

    def expect(self, number: int, task: dict[str, Any]) -> None:
        """Before a trial starts; nothing of an earlier start is left."""
        self.tasks[number] = task
        for told in (self.newest, self.checkpoints, self.errors):
            told.pop(number, None)

    def begin(self, number: int, driver: Driver) -> dict[str, Any] | None:
        """The task of a trial whose driver has started; None where the board is closed, so that it must not begin."""
        if self.closed:
            return None
        self.drivers[number] = driver
        return self.tasks[number]

    def close(self) -> dict[int, Driver]:
        """Let no more trials begin; the newest driver of each that has."""
        self.closed = True
        return self.drivers

    def log(self, number: int, step: int, metrics: Metrics) -> None:
        self.newest[number] = (step, self.newest.get(number, (0, {}))[1] | metrics)

    def checkpointed(self, number: int, step: int, metrics: Metrics) -> None:
        self.checkpoints.setdefault(number, []).append((step, metrics))

    def taken(self, number: int) -> list[Row]:
        """Figures at checkpoints that were not taken before."""
        return self.checkpoints.pop(number, [])

    def failed(self, number: int, error: str) -> None:
        self.errors[number] = error

    def error(self, number: int) -> str:
        return self.errors.get(number, "")

    def now(self) -> dict[int, Row]:
        """The newest figures of every trial."""
        return self.newest


@dataclass(frozen=True)
class BoardObserver:
    """An Observer on rank 0 of trial `number`; `board` is the actor's handle. It sends and does not wait."""

    board: Any
    number: int

    def log(self, step: int, metrics: Metrics) -> None:
        self.board.log.remote(self.number, step, metrics)

    def picture(self, step: int, name: str, image: "Image.Image") -> None:
        """A sweep shows no pictures while it runs; they lie in the trial's previews/."""

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None:
        self.board.checkpointed.remote(self.number, step, metrics)

    def alarm(self, step: int, alarm: "Alarm") -> None:
        if not alarm.over:
            logger.warning("trial %d: step %d: %s", self.number, step, alarm.text)
