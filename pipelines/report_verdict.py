"""A report in words: which row is better and why."""

import math
from collections.abc import Sequence

from infd.evaluation.result import Metric
from pipelines.report_tables import (
    DECIBELS,
    Column,
    Row,
    Table,
    compares,
    first_two,
    image_by_image,
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
    if shared:
        said = [wins_told(table, shared), *clearest(table, shared)]
    else:
        said = ["No figure was made of all rows under the same conditions; evaluate them with the same command."]
    return [*said, *scales_told(rows), *settings_told(rows)]


# ---------------------------------------------------------------- figures


def wins_told(table: Table, shared: Sequence[int]) -> str:
    """In how many figures each row is best by more than the error, the first first, and how many tell nothing."""
    wins = [sum(table.best[k] == index and not table.even[k] for k in shared) for index in range(len(table.rows))]
    even = sum(table.even[k] for k in shared)
    doubtful = f"; in {even} the best two differ by less than the error" if even else ""
    if not max(wins):
        return f"None of the {len(shared)} figures that all have tells the rows apart{doubtful}."
    leading = sorted((index for index, count in enumerate(wins) if count), key=lambda index: -wins[index])
    first = [table.rows[index].name for index in leading if wins[index] == max(wins)]
    others = [f", {table.rows[index].name} in {wins[index]}" for index in leading if wins[index] < max(wins)]
    best = f"{first[0]} is best in" if len(first) == 1 else f"{' and '.join(first)} are each best in"
    return f"{best} {max(wins)} of the {len(shared)} figures that all have{''.join(others)}{doubtful}."


def clearest(table: Table, shared: Sequence[int]) -> list[str]:
    """Of each kind of figure that whose best two differ most, in its own size, and whether that is more than its error."""
    found: dict[str, tuple[float, str]] = {}
    for k in shared:
        if table.best[k] is None:
            continue
        column = table.columns[k]
        column_cells = [line[k] for line in table.cells]
        one, second = first_two(column_cells, column.better)
        name, other = (table.rows[column_cells.index(have)].name for have in (one, second))
        share, kind = share_of(column, one.value, second.value), kind_of(column.metric)
        doubt = ", which is within the error" if table.even[k] else ""
        if share > found.get(kind, (0.0, ""))[0]:
            found[kind] = (share, f"{column.title}: {plain(one.value)} of {name} against {plain(second.value)} of {other}"
                                  f"{difference(column, one, second)}{doubt}.")
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
