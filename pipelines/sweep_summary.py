"""A sweep in figures: SWEEP/sweep.json for programs, sweep.md and a table for people.

sweep.json is the seam for reports: `trials` has the address of every run, its values, seed, state and figures.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any, TypeVar

from infd import storage
from pipelines.snapshots_text import table_text
from pipelines.sweep_plan import Plan, Values, value_text, values_text
from pipelines.sweep_table import number_text
from pipelines.sweep_trials import Fate

FORMAT = 1
ThingT = TypeVar("ThingT")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Values with their figures over the seeds that came to their end or were stopped. `spread`: standard deviation of a
    sample; None with one seed."""

    point: int
    values: Values
    trials: list[int]
    counted: int
    mean: float | None
    spread: float | None
    least: float | None
    most: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a sweep came to."""

    plan: Plan
    fates: Sequence[Fate]
    points: Sequence[Point]
    best_point: Point | None
    best_trial: Fate | None
    page: str = ""
    """Address of the report over the trials; empty: none has a checkpoint."""

    @property
    def failed(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.state == "failed"]

    @property
    def unfinished(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.state == "unfinished"]


def summary(plan: Plan, fates: Sequence[Fate]) -> Summary:
    """Points and trials in their order. The best are among those that were not ended early, where there are any: a figure
    of fewer steps is of another race."""
    points = [point_of([fate for fate in fates if fate.trial.point == number])
              for number in sorted({fate.trial.point for fate in fates})]
    ended = [fate for fate in fates if fate.state == "finished"] or [fate for fate in fates if fate.over]
    found = Summary(plan=plan, fates=fates, points=points, best_point=None,
                    best_trial=next(iter(by_figure(ended, [fate.figure for fate in ended], plan)), None))
    return replace(found, best_point=next(iter(ranked(found)), None))


def ranked(found: Summary) -> list[Point]:
    """Points with a figure, the best first; of those all of whose trials came to their end, where there are any."""
    short = {fate.trial.point for fate in found.fates if fate.state != "finished"}
    fair = [point for point in found.points if point.point not in short] or found.points
    return by_figure(fair, [point.mean for point in fair], found.plan)


def by_figure(things: Sequence[ThingT], figures: Sequence[float | None], plan: Plan) -> list[ThingT]:
    """Those that have a figure, the best first; of equals the first first."""
    told = [(figure, thing) for figure, thing in zip(figures, things, strict=True) if figure is not None]
    sign = 1 if plan.sweep.direction == "min" else -1
    return [thing for _, thing in sorted(told, key=lambda pair: sign * pair[0])]


def point_of(fates: Sequence[Fate]) -> Point:
    figures = [fate.figure for fate in fates if fate.over and fate.figure is not None]
    return Point(point=fates[0].trial.point, values=fates[0].trial.values, trials=[fate.trial.number for fate in fates],
                 counted=len(figures), mean=fmean(figures) if figures else None,
                 spread=stdev(figures) if len(figures) > 1 else None,
                 least=min(figures, default=None), most=max(figures, default=None))


# ---------------------------------------------------------------- written


def write(found: Summary) -> str:
    """Write sweep.json and sweep.md; the address of the first."""
    uri = storage.join(found.plan.uri, "sweep.json")
    storage.put_atomic(storage.join(found.plan.uri, "sweep.md"), markdown(found).encode())
    storage.put_atomic(uri, json.dumps(record(found), indent=1).encode())
    return uri


def record(found: Summary) -> dict[str, Any]:
    plan = found.plan
    trials = [{"number": fate.trial.number, "point": fate.trial.point, "seed": fate.trial.seed, "values": fate.trial.values,
               "run": fate.trial.run, "state": fate.state, "step": fate.step, "steps": fate.trial.steps,
               "figure": fate.figure, "last": fate.last, "checkpoint": fate.checkpoint, "error": fate.error}
              for fate in found.fates]
    return {"format": FORMAT, "sweep": plan.uri, "plan": plan.record(), "metric": plan.sweep.metric,
            "direction": plan.sweep.direction, "trials": trials, "points": [asdict(point) for point in found.points],
            "best_point": found.best_point.point if found.best_point else None,
            "best_trial": found.best_trial.trial.number if found.best_trial else None}


def tables(found: Summary) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Rows of points and of trials, each with a heading."""
    plan = found.plan
    names = [axis.name for axis in plan.axes]
    heading = ("seeds", f"mean {plan.sweep.metric}", "spread", "least", "most", "")
    points: list[Sequence[str]] = [(*(names or ["values"]), *heading)]
    for point in found.points:
        values = [value_text(point.values[name]) for name in names] or [values_text(point.values)]
        mark = "best" if point is found.best_point else ""
        points.append((*values, f"{point.counted}/{len(point.trials)}",
                       *map(number_text, (point.mean, point.spread, point.least, point.most)), mark))
    trials: list[Sequence[str]] = [("trial", "state", "step", plan.sweep.metric, "last", "seed", "values", "")]
    for fate in found.fates:
        mark = "best" if fate is found.best_trial else ""
        trials.append((f"{fate.trial.number:03d}", fate.state, f"{fate.step}/{fate.trial.steps}", number_text(fate.figure),
                       number_text(fate.last), f"{fate.trial.seed}", values_text(fate.trial.values), mark))
    return points, trials


def text(found: Summary) -> str:
    """For a terminal."""
    points, trials = tables(found)
    lines = [f"sweep {found.plan.uri}", "", table_text(points, left=(*range(len(points[0]) - 6), len(points[0]) - 1)), "",
             table_text(trials, left=(0, 1, 6, 7))]
    if found.best_trial is not None:
        lines += ["", f"best trial {found.best_trial.trial.number:03d}: {found.best_trial.checkpoint}"]
    lines += [f"trial {fate.trial.number:03d} failed: {fate.error}" for fate in found.failed]
    lines += ["", f"report {found.page}"] if found.page else []
    return "\n".join(lines)


def markdown(found: Summary) -> str:
    plan = found.plan
    points, trials = tables(found)
    kind = {"ae": "autoencoder", "ldm": "latent diffusion"}[plan.stage]
    better = "less is better" if plan.sweep.direction == "min" else "more is better"
    lines = [f"# Sweep {plan.name}", "",
             f"Preset `{plan.preset}` ({kind}) on `{plan.snapshot}`, {plan.config.loop.steps} steps; "
             f"search {plan.sweep.search}, scheduler {plan.sweep.scheduler}. "
             f"Judged by `{plan.sweep.metric}` ({better}) at each run's checkpoint `best`. "
             "The spread is the standard deviation over seeds.", "", "## Values", "", *markdown_table(points), "",
             "## Trials", "", *markdown_table(trials)]
    if found.best_trial is not None:
        lines += ["", f"Best trial: `{found.best_trial.checkpoint}`"]
    if found.failed:
        lines += ["", "## Failed", "", *(f"- trial {fate.trial.number:03d}: {escaped(fate.error)}" for fate in found.failed)]
    return "\n".join([*lines, ""])


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def escaped(text: str) -> str:
    return text.replace("|", "\\|")
