"""A report in words: which row is better and why."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from infd.evaluation.result import Metric
from pipelines.report_tables import (
    DECIBELS,
    Column,
    Row,
    Table,
    compares,
    error_of,
    kind_of,
    scale_metric,
    scales,
    settings_rows,
)
from pipelines.report_text import number

CLEAREST = 4
"""Figures of which the difference is told."""
SETTINGS = 8
"""Settings that are told of."""


def verdict(table: Table) -> list[str]:
    """Which row is better and why, a sentence each: how many figures, the clearest of them, scales, settings."""
    rows = table.rows
    if len(rows) < 2:
        return []
    shared = [k for k in range(len(table.columns)) if all(line[k] is not None for line in table.cells)]
    wins = [sum(table.best[k] == index for k in shared) for index in range(len(rows))]
    said = []
    if shared and max(wins):
        first = wins.index(max(wins))
        tied = [rows[index].name for index, count in enumerate(wins) if count == max(wins)]
        said.append(f"{rows[first].name} is best in {wins[first]} of the {len(shared)} figures that all have." if len(tied) == 1
                    else f"{' and '.join(tied)} are each best in {max(wins)} of the {len(shared)} figures that all have.")
        said += clearest(table, shared)
    elif shared:
        said.append("No figure that all have tells the rows apart.")
    else:
        said.append("No figure was made of all rows under the same conditions; evaluate them with the same command.")
    return [*said, *scales_told(rows), *settings_told(rows)]


# ---------------------------------------------------------------- figures


def clearest(table: Table, shared: Sequence[int]) -> list[str]:
    """Of each kind of figure that whose best two differ most, in its own size, and whether that is more than its error."""
    found: dict[str, tuple[float, str]] = {}
    for k in shared:
        if table.best[k] is None:
            continue
        column = table.columns[k]
        have = [(one, table.rows[index].name) for index, line in enumerate(table.cells) if (one := line[k])]
        have.sort(key=lambda pair: pair[0].value, reverse=column.better == "higher")
        (one, name), (second, other) = have[:2]
        share, kind = share_of(column, one.value, second.value), kind_of(column.metric)
        if share > found.get(kind, (0.0, ""))[0]:
            found[kind] = (share, f"{column.title}: {plain(one.value)} of {name} against {plain(second.value)} of {other}"
                                  f"{difference(column, one, second)}{doubt(one, second)}.")
    return [text for _, text in sorted(found.values(), key=lambda pair: -pair[0])[:CLEAREST]]


def plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else number(value)


def in_decibels(column: Column) -> bool:
    """Whether differences are told in decibels; of a distance between spectra they are not."""
    return kind_of(column.metric) in DECIBELS and column.better == "higher"


def share_of(column: Column, one: float, other: float) -> float:
    """How much smaller the smaller value is, 0 to 1; of decibels the squared error behind it."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return 1.0
    if in_decibels(column):
        return 1 - 10 ** (-abs(one - other) / 10)
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def difference(column: Column, one: Metric, other: Metric) -> str:
    """ " (20% lower)", " (+1.2 dB; better in 5 of 6 images)", or pools of them; empty where a value is not finite."""
    if not (math.isfinite(one.value) and math.isfinite(other.value)):
        return ""
    by = one.value - other.value
    size = f"{by:+.2g} dB" if in_decibels(column) else f"{by / max(abs(other.value), 1e-12):+.0%}"
    pairs = image_by_image(one, other)
    sign = 1 if column.better == "higher" else -1
    won = f"; better in {sum(sign * step > 0 for step in pairs)} of {len(pairs)} {one.over}" if pairs else ""
    return f" ({size.replace('-', '−')}{won})"


def doubt(one: Metric, other: Metric) -> str:
    """Whether two values differ by less than twice the error of their difference, where that is known."""
    pairs = [step for step in image_by_image(one, other) if math.isfinite(step)]
    if len(pairs) > 1:
        gap, error = abs(fmean(pairs)), stdev(pairs) / len(pairs) ** 0.5
    else:
        gap, error = abs(one.value - other.value), max(error_of(one), error_of(other))
    return ", which is within the error" if error and gap < 2 * error else ""


def image_by_image(one: Metric, other: Metric) -> list[float]:
    """The differences of two figures over the same images, or the same pools of them; [] of figures that are means of neither.

    Equal columns have equal images in equal order, and so equal pools. Images that both reproduce to the bit say nothing.
    """
    if one.over == "seeds" or one.over != other.over or len(one.values) != len(other.values):
        return []
    return [a - b for a, b in zip(one.values, other.values, strict=True) if a != b or math.isfinite(a)]


# ---------------------------------------------------------------- scales and settings


def scales_told(rows: Sequence[Row]) -> list[str]:
    """Of two runs, where the one's validation is better than the other's: the loss where both have the same, else PSNR."""
    if len(rows) != 2 or rows[0].run is None or rows[1].run is None or rows[0].run.uri == rows[1].run.uri:
        return []
    metric = scale_metric(rows)
    if not compares(rows, metric):
        return []
    one, other = (scales(row, metric) for row in rows)
    ends = [end for end in one if other.get(end)]
    if metric == "val/loss":
        parts = [f"{100 * (one[end] / other[end] - 1):+.0f}% at r to {end}" for end in ends]
    else:
        parts = [f"{one[end] - other[end]:+.1f} dB at r to {end}" for end in ends]
    name = "loss" if metric == "val/loss" else "PSNR"
    told = ", ".join(parts).replace("-", "−")
    return [f"Validation {name} of {rows[0].name} against {rows[1].name}: {told}."] if parts else []


def settings_told(rows: Sequence[Row]) -> list[str]:
    """The settings in which the runs differ; of more than two runs their names alone."""
    found = settings_rows(rows)
    if not found:
        return []
    (_, *runs), lines = found[0], found[1:]
    two = len(runs) == 2
    told = [f"{name} {values[0]} ({runs[0]}), {values[1]} ({runs[1]})" if two else name for name, *values in lines[:SETTINGS]]
    more = f" and {len(lines) - SETTINGS} more" if len(lines) > SETTINGS else ""
    return [f"Settings differ: {('; ' if two else ', ').join(told)}{more}."]
