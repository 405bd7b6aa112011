"""A sweep while it runs, for people: a live table on a terminal, one line for every event elsewhere."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from pipelines.snapshots_text import table_text
from pipelines.sweep_board import Row
from pipelines.sweep_plan import Trial
from pipelines.sweep_trials import Fate

logger = logging.getLogger(__name__)

LEFT = (0, 1, 5)


@dataclass
class Line:
    """Of one trial."""

    trial: Trial
    state: str
    step: int = 0
    loss: str = "-"
    figure: str = "-"

    @property
    def cells(self) -> tuple[str, ...]:
        trial = self.trial
        return f"{trial.number:03d}", self.state, f"{self.step}/{trial.steps}", self.loss, self.figure, trial.text


class Table:
    """One line a trial: state, step, figures, values. `total` counts the trials that have not begun too."""

    def __init__(self, fates: Sequence[Fate], *, metric: str, total: int, stream: TextIO | None = None) -> None:
        self.metric, self.total = metric, total
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.lines = {fate.trial.number: line_of(fate) for fate in fates if fate.state != "unfinished" or fate.step}
        self.drawn, self.shown = 0, ""

    def starts(self, trial: Trial) -> None:
        before = self.lines.get(trial.number)
        self.lines[trial.number] = Line(trial, "running", step=before.step if before else 0)
        going_on = f", going on from step {before.step}" if before and before.step else ""
        self.event(f"trial {trial.number:03d} ({trial.text}): started{going_on}")

    def judged(self, number: int, step: int, value: float) -> None:
        line = self.lines[number]
        line.figure, line.step = f"{value:.4g}", max(line.step, step)
        self.event(f"trial {number:03d}: step {step}/{line.trial.steps}: {self.metric} {value:.4g}")

    def ends(self, fate: Fate) -> None:
        trial = fate.trial
        self.lines[trial.number] = line_of(fate)
        told = fate.error or f"{self.metric} {number_text(fate.figure)} at its best checkpoint"
        self.event(f"trial {trial.number:03d} ({trial.text}): {fate.state} at step {fate.step}/{trial.steps}: {told}")

    def show(self, newest: Mapping[int, Row]) -> None:
        """Take in how far the trials are; draw, where there is a terminal."""
        for number, (step, metrics) in newest.items():
            line = self.lines.get(number)
            if line is not None and line.state == "running":
                line.step = max(line.step, step)
                line.loss = number_text(metrics.get("train/loss"))
        if self.live:
            self.draw()

    def event(self, text: str) -> None:
        """A line in the log; on a terminal the table shows it."""
        if not self.live:
            logger.info("%s", text)

    def text(self, width: int, height: int) -> str:
        """The table, in so many columns and lines of a terminal: what runs stays, then the newest of the rest."""
        shown = sorted(self.lines.values(), key=lambda line: (line.state != "running", -line.trial.number))[:max(1, height - 3)]
        rows = [line.cells for line in sorted(shown, key=lambda line: line.trial.number)]
        more = self.total - len(shown)
        states = [line.state for line in self.lines.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("running", "finished", "stopped", "failed")
                           if state in states)
        waiting = self.total - len(self.lines)
        foot = f"{counts or 'none begun'}, {waiting} to come" + (f"; {more - waiting} not shown" if more > waiting else "")
        table = table_text([("trial", "state", "step", "train/loss", self.metric, "values"), *rows], left=LEFT)
        return "\n".join(line[:width - 1] for line in [*table.split("\n"), foot])

    def draw(self) -> None:
        """Over what was drawn before."""
        size = shutil.get_terminal_size()
        text = self.text(size.columns, size.lines)
        if self.drawn and text == self.shown:
            return
        self.erase()
        self.shown = text
        self.stream.write(f"{text}\n")
        self.stream.flush()
        self.drawn = text.count("\n") + 1

    def erase(self) -> None:
        if self.drawn:
            self.stream.write(f"\x1b[{self.drawn}F\x1b[J")
            self.drawn = 0

    @contextlib.contextmanager
    def below_the_log(self, log: logging.Logger = logging.root) -> Iterator[None]:
        """Inside the block a line of the log takes the table's place, and the table is drawn again below it; drawn once more
        at the end."""
        def make_room(record: logging.LogRecord) -> bool:
            self.erase()
            return True

        handlers = [*log.handlers] if self.live else []
        for handler in handlers:
            handler.addFilter(make_room)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(make_room)
            if self.live:
                self.draw()


def line_of(fate: Fate) -> Line:
    state = "interrupted" if fate.state == "unfinished" else fate.state
    return Line(fate.trial, state, step=fate.step, figure=number_text(fate.figure))


def number_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
