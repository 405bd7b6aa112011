"""The report over a sweep's trials: that of pipelines/report.py, its rows named by what was tried, the best point first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infd import storage
from pipelines import report, report_text
from pipelines.report_tables import over_seeds, table_of
from pipelines.sweep_plan import Plan, Values, value_text
from pipelines.sweep_summary import Condition, Point, Summary
from pipelines.sweep_table import number_text
from pipelines.sweep_trials import Fate


def write(found: Summary) -> str:
    """Write report.html, .md and .json into SWEEP/report; the page's address, or "" where no trial has a checkpoint."""
    names = {fate.trial.run: f"{fate.trial.number:03d}: {short(fate.trial.values, found.plan)}, seed {fate.trial.seed}"
             for fate in found.fates if fate.checkpoint}
    if not names:
        return ""
    rows = report.named([replace(row, name=names[row.run.uri]) if row.run else row for row in report.read_rows([*names])])
    table, said, out = table_of(rows), verdict(found), storage.join(found.plan.uri, "report")
    shown: dict[str, Any] = {**report.values(table, said), "title": f"Sweep {found.plan.name}"}
    for line, pooled in zip(shown["pooled"], over_seeds(table), strict=True):
        line["name"] = group_name([fate for fate in found.fates if names.get(fate.trial.run, "\n") in pooled.name], found.plan)
    page = storage.join(out, "report.html")
    for name, data in (("report.json", report.as_json(table, said)), ("report.md", report_text.markdown(table, said)),
                       ("report.html", report.render(shown))):
        storage.put_atomic(storage.join(out, name), data.encode())
    return page


def short(values: Values, plan: Plan) -> str:
    """`lr=0.002 gan=0.5`: fields without their group, where that leaves them apart."""
    lasts = [axis.name.rsplit(".", 1)[-1] for axis in plan.axes]
    named = {name: last if lasts.count(last) == 1 else name for name in values for last in [name.rsplit(".", 1)[-1]]}
    return " ".join(f"{named[name]}={value_text(value)}" for name, value in values.items()) or "the preset itself"


def group_name(fates: Sequence[Fate], plan: Plan) -> str:
    """Of trials that differ by their seed alone."""
    return f"{short(fates[0].trial.values, plan)}: mean ± standard deviation of {len(fates)} seeds"


# ---------------------------------------------------------------- in words


def verdict(found: Summary) -> list[str]:
    """Whether the metric compares all trials; which values are best and by how much, and the best trial, of each condition;
    and what did not come to its end."""
    said = [found.caution[0].upper() + found.caution[1:] + "."] if found.caution else []
    for one in found.conditions:
        said += best_of(one, found.plan)
    if stopped := sum(fate.state == "stopped" for fate in found.fates):
        said.append(f"{stopped} of {len(found.fates)} trials were ended early; their figures are of fewer steps.")
    return said + [f"Trial {fate.trial.number:03d} ({short(fate.trial.values, found.plan)}, seed {fate.trial.seed}) failed: "
                   f"{fate.error}" for fate in found.failed]


def best_of(one: Condition, plan: Plan) -> list[str]:
    """Of one condition: the best values against the second best, and the best trial."""
    said, among = [], f" {one.text}" if one.text else ""
    if len(one.ranked) > 1:
        first, second = one.ranked[:2]
        said.append(f"{short(first.values, plan)} is best{among and ' of the points' + among}: {plan.sweep.metric} "
                    f"{figure_text(first)}, against {figure_text(second)} of {short(second.values, plan)}"
                    f"{doubt(first, second)}.")
    if (best := one.best_trial) is not None:
        said.append(f"Of the trials{among} {best.trial.number:03d} is best, with {number_text(best.figure)}: "
                    f"{best.checkpoint}.")
    return said


def figure_text(point: Point) -> str:
    """`0.3187 ± 0.014 (2 seeds)`."""
    spread = f" ± {point.spread:.2g}" if point.spread is not None else ""
    return f"{number_text(point.mean)}{spread} ({point.counted} seed{'s' * (point.counted != 1)})"


def doubt(first: Point, second: Point) -> str:
    """What to think of the difference."""
    if first.spread is None or second.spread is None or first.mean is None or second.mean is None:
        return "; with one seed the difference may be chance"
    within = abs(first.mean - second.mean) < 2 * max(first.spread, second.spread)
    return ", which is within twice the spread over seeds" if within else ""
