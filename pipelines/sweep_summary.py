"""A sweep in figures: SWEEP/sweep.json for programs, sweep.md and a table for people.

sweep.json is the seam for reports: `trials` has the address of every run, its values, seed, state and figures.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

from infd import storage
from pipelines import sweep_conditions
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
class Condition:
    """Trials whose figures compare: all of a sweep, or those of one choice of `values`, of the fields that the metric itself
    depends on. The best are among those that were not ended early, where there are any: a figure of fewer steps is of another
    race."""

    values: Values
    ranked: Sequence[Point]
    """Points with a figure, the best first."""
    best_point: Point | None
    best_trial: Fate | None
    """None where the condition, one of several, has one trial with a figure alone; `best_point` alike."""

    @property
    def text(self) -> str:
        """`with loss.l1=2`; empty where there is one condition."""
        return f"with {values_text(self.values)}" if self.values else ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a sweep came to."""

    plan: Plan
    fates: Sequence[Fate]
    points: Sequence[Point]
    conditions: Sequence[Condition]
    caution: str
    """Why the metric does not compare all trials; empty where it does."""
    page: str = ""
    """Address of the report over the trials; empty: none has a checkpoint."""

    @property
    def best_point(self) -> Point | None:
        """None where there are several conditions, between which nothing is best."""
        return self.conditions[0].best_point if len(self.conditions) == 1 else None

    @property
    def best_trial(self) -> Fate | None:
        """As `best_point`."""
        return self.conditions[0].best_trial if len(self.conditions) == 1 else None

    @property
    def failed(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.state == "failed"]

    @property
    def unfinished(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.state == "unfinished"]


def summary(plan: Plan, fates: Sequence[Fate]) -> Summary:
    """Points, trials and conditions in their order."""
    points = [point_of([fate for fate in fates if fate.trial.point == number])
              for number in sorted({fate.trial.point for fate in fates})]
    trials = [fate.trial for fate in fates]
    names = sweep_conditions.fields(plan, trials)
    groups: dict[str, list[Fate]] = {}
    for fate in fates:
        groups.setdefault(json.dumps(sweep_conditions.condition(fate.trial, plan, names)), []).append(fate)
    conditions = [condition_of(json.loads(values), group, points, plan, alone=len(groups) == 1)
                  for values, group in groups.items()]
    return Summary(plan=plan, fates=fates, points=points, conditions=conditions,
                   caution=sweep_conditions.caution(plan, trials))


def condition_of(values: Values, fates: Sequence[Fate], points: Sequence[Point], plan: Plan, *, alone: bool) -> Condition:
    """The condition of these trials; `alone`: there is no other."""
    mine = [point for point in points if point.point in {fate.trial.point for fate in fates}]
    short = {fate.trial.point for fate in fates if fate.state != "finished"}
    fair = [point for point in mine if point.point not in short] or mine
    ranked = by_figure(fair, [point.mean for point in fair], plan)
    ended = [fate for fate in fates if fate.state == "finished"] or [fate for fate in fates if fate.over]
    trials = by_figure(ended, [fate.figure for fate in ended], plan)
    least = 1 if alone else 2
    return Condition(values=values, ranked=ranked, best_point=ranked[0] if len(ranked) >= least else None,
                     best_trial=trials[0] if len(trials) >= least else None)


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
            "caution": found.caution, "conditions": [condition_record(one) for one in found.conditions],
            "best_point": found.best_point.point if found.best_point else None,
            "best_trial": found.best_trial.trial.number if found.best_trial else None}


def condition_record(one: Condition) -> dict[str, Any]:
    """Numbers of its points, the best first, of the best point and of the best trial."""
    return {"values": one.values, "ranked": [point.point for point in one.ranked],
            "best_point": one.best_point.point if one.best_point else None,
            "best_trial": one.best_trial.trial.number if one.best_trial else None}


def tables(found: Summary) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Rows of points and of trials, each with a heading."""
    plan = found.plan
    names = [axis.name for axis in plan.axes]
    heading = ("seeds", f"mean {plan.sweep.metric}", "spread", "least", "most", "")
    points: list[Sequence[str]] = [(*(names or ["values"]), *heading)]
    for point in found.points:
        values = [value_text(point.values[name]) for name in names] or [values_text(point.values)]
        mark = mark_of([one.text for one in found.conditions if one.best_point is point])
        points.append((*values, f"{point.counted}/{len(point.trials)}",
                       *map(number_text, (point.mean, point.spread, point.least, point.most)), mark))
    trials: list[Sequence[str]] = [("trial", "state", "step", plan.sweep.metric, "last", "seed", "values", "")]
    for fate in found.fates:
        mark = mark_of([one.text for one in found.conditions if one.best_trial is fate])
        trials.append((f"{fate.trial.number:03d}", fate.state, f"{fate.step}/{fate.trial.steps}", number_text(fate.figure),
                       number_text(fate.last), f"{fate.trial.seed}", values_text(fate.trial.values), mark))
    return points, trials


def mark_of(texts: Sequence[str]) -> str:
    """`best`, or `best with loss.l1=2`; empty: of no condition."""
    return f"best {texts[0]}".strip() if texts else ""


def best_lines(found: Summary, quote: str = "") -> list[str]:
    """The best trial of each condition that has one, and why there are several."""
    lines = [f"best trial {' '.join(filter(None, (f'{best.trial.number:03d}', one.text)))}: {quote}{best.checkpoint}{quote}"
             for one in found.conditions if (best := one.best_trial) is not None]
    return lines + ([f"mind: {found.caution}"] if found.caution else [])


def text(found: Summary) -> str:
    """For a terminal."""
    points, trials = tables(found)
    lines = [f"sweep {found.plan.uri}", "", table_text(points, left=(*range(len(points[0]) - 6), len(points[0]) - 1)), "",
             table_text(trials, left=(0, 1, 6, 7))]
    if best := best_lines(found):
        lines += ["", *best]
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
    for line in best_lines(found, "`"):
        lines += ["", line[0].upper() + line[1:]]
    if found.failed:
        lines += ["", "## Failed", "", *(f"- trial {fate.trial.number:03d}: {escaped(fate.error)}" for fate in found.failed)]
    return "\n".join([*lines, ""])


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def escaped(text: str) -> str:
    return text.replace("|", "\\|")
