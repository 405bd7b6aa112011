"""Words and numbers of a report, the same on the page and in Markdown."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infd.config import ReconstructionConfig, SamplesConfig
from infd.config_form import flat
from infd.evaluation.result import Metric, Result
from pipelines.published import IMAGES
from pipelines.report_choices import Condition, conditions, lines_of, short
from pipelines.report_departures import MARK, marks, sentences
from pipelines.report_tables import (
    PLACES,
    Row,
    Table,
    condition_of,
    error_of,
    families,
    over_seeds,
    scale_metric,
    scales,
    settings_rows,
    title,
)

ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}
RIVALS = 3
"""Figures that are told of two results of one condition."""
NAMED = 3
"""Runs without results whose names are told."""


def number(value: float) -> str:
    """Four significant digits, no exponent where it can be helped."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 6)}f}".replace("-", "−")


def value_text(one: Metric | None) -> str:
    return number(one.value) if one else "–"


def error_text(one: Metric) -> str:
    """ "± 0.02" where the error of the value is known."""
    error = error_of(one)
    return f"± {error:.2g}" if error else ""


# ---------------------------------------------------------------- notes


def numbers(made: Sequence[Condition]) -> dict[str, int]:
    """Condition -> its number, by which columns refer to it."""
    return {one.key: one.number for one in made}


def cautions(rows: Sequence[Row]) -> list[str]:
    """What results say of themselves that a reader must know, and what rows say of their results. No full stop at the end."""
    said = [note for row in rows for result in row.results for note in result.notes]
    said += [changed(row) for row in rows if row.stale]
    return list(dict.fromkeys([*said, *(one for row in rows for one in rivals(row)), *unjudged(rows)]))


def changed(row: Row) -> str:
    """Of a row whose checkpoint is another one today."""
    return (f"{row.name}: {row.address} holds another checkpoint today; these figures are of the one with content "
            f"{row.content[:8]}, which lay there before; evaluate the new one, or leave {', '.join(row.folders)} out")


def unjudged(rows: Sequence[Row]) -> Iterator[str]:
    """Of runs without any result, a line for each stage: the command that judges the first of them."""
    for drawn in (False, True):
        runs = [(row.name, row.run) for row in rows
                if row.run and row.run.best and not row.results and bool(row.run.record["latents"]) == drawn]
        if runs:
            more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
            names = ", ".join(name for name, _ in runs[:NAMED]) + more
            first = runs[0][1]
            protocol, options = asked(first.record["config"], drawn=drawn)
            yield (f"{names}: not judged yet, so that training's own validation is all there is; python jobs/evaluate.py "
                   f"{protocol} {first.record['snapshot']} {first.uri}/checkpoints/best {options} judges {runs[0][0]}")


def asked(config: Mapping[str, Any], *, drawn: bool) -> tuple[str, str]:
    """A protocol and its options, as the evaluation of that training has them; the defaults' where a config lacks them."""
    if drawn:
        known = {f"evaluation.{name}": value for name, value in flat(SamplesConfig()).items()} | dict(config)
        return "frechet", " ".join(f"--{name} {known[f'evaluation.{name}']}" for name in ("images", "side", "network"))
    sizes = config.get("evaluation.sizes", ReconstructionConfig().sizes)
    return "reconstruction", "--sizes " + " ".join(map(str, sizes))


def rivals(row: Row) -> Iterator[str]:
    """Results of one condition that tell different figures: both folders, both values, and which one is shown."""
    for folder, other, by in row.superseded:
        shown = row.results[row.folders.index(by)]
        values = {one.name: one.value for one in other.metrics}
        differ = [(one.name, one.value, values[one.name]) for one in shown.metrics
                  if one.name in values and one.value != values[one.name]]
        if not differ:
            continue
        told = ", ".join(f"{title(name)} {pair_text(value, left)}" for name, value, left in differ[:RIVALS])
        more = f" and {len(differ) - RIVALS} more" if len(differ) > RIVALS else ""
        newer = shown.versions.get("infd") != other.versions.get("infd")
        why = "made by the newer library" if newer else "the first by name"
        yield (f"{row.name}: {by} and {folder} are of one condition and differ ({unlike(shown, other)}): {told}{more}; shown "
               f"is {by}, {why}")


def pair_text(one: float, other: float) -> str:
    """ "5.340 and 5.341": with as many digits as it takes to tell them apart."""
    texts = number(one), number(other)
    return " and ".join(texts if texts[0] != texts[1] else (repr(one), repr(other)))


def unlike(one: Result, other: Result) -> str:
    """What two results of one condition were made with, where it differs."""
    facts = [{**result.versions, **{name: result.choices.get(name, "") for name in PLACES},
              "fingerprint of the judged": result.sources[-1].get("fingerprint", "")} for result in (one, other)]
    names = [name for name in sorted({*facts[0], *facts[1]}) if facts[0].get(name) != facts[1].get(name)]
    return "; ".join(f"{name} {short(facts[0].get(name))} and {short(facts[1].get(name))}" for name in names) or \
        "in nothing that they tell of themselves"


# ---------------------------------------------------------------- scales and matrices


def scale_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A heading, then a line for each row: the validation metric that compares by the upper end of r; [] where none has it."""
    metric = scale_metric(rows)
    found = {row.name: curve for row in rows if (curve := scales(row, metric))}
    ends = sorted({end for curve in found.values() for end in curve})
    if not ends:
        return []
    lines = [[name, *(number(curve[end]) if end in curve else "–" for end in ends)] for name, curve in found.items()]
    return [[metric, *(f"r to {end}" for end in ends)], *lines]


def matrices(rows: Sequence[Row], made: Sequence[Condition]) -> list[dict[str, Any]]:
    """SelfSSIM of each row's fields, by how renders are resized: row = side of comparison, column = the other's side.

    `made`: the conditions, whose numbers they carry.
    """
    places = numbers(made)
    shown = []
    for row in rows:
        for result in row.results:
            for how in dict.fromkeys(one.name.split("[")[1].split("]")[0] for one in result.metrics
                                     if one.name.startswith("self_ssim")):
                shown.append(matrix(row, result, how) | {"note": places[condition_of(result)]})
    return shown


def matrix(row: Row, result: Result, how: str) -> dict[str, Any]:
    found = {one.name.split("]_")[1]: one.value for one in result.metrics if one.name.startswith(f"self_ssim[{how}]")}
    sides = sorted({int(side) for key in found for side in key.split("/")})
    cells = [[str(at), *("1" if at == other else f"{found[f'{at}/{other}']:.3f}" for other in sides)] for at in sides]
    shifts = [f"{one.name.rsplit('_', 1)[1]} → {2 * int(one.name.rsplit('_', 1)[1])}: {number(one.value)}"
              for one in result.metrics if one.name.startswith("mean_shift")]
    return {"title": f"{row.name}, {how}", "heads": ["", *map(str, sides)], "cells": cells, "fields": result.counts["fields"],
            "shifts": "; ".join(shifts)}


# ---------------------------------------------------------------- Markdown


def markdown(table: Table, said: Sequence[str]) -> str:
    """The report without its pictures. Best values are bold; published figures are in italics and say so."""
    made = conditions(table)
    parts = ["# Evaluation", "\n".join(f"- {sentence}" for sentence in said)]
    for name, places in families(table.columns).items():
        parts += [f"## {name}", family_text(table, places, numbers(made))]
    parts.append("\n".join(f"[{one.number}] {one.text}" for one in made))
    if table.printed:
        parts += [f"Published figures are over {IMAGES:,} generated images with Inception's features; no others compare. "
                  f"{MARK}: made otherwise than the published figures of its column, and not equal to them.",
                  "\n".join(f"- {sentence}" for sentence in sentences(table, numbers(made)))]
    parts += [f"Mind: {note}." for note in cautions(table.rows)]
    if settings := settings_rows(table.rows):
        parts += ["## Settings that differ", pipes(settings[0], settings[1:])]
    if loss := scale_rows(table.rows):
        parts += ["## Validation by side r", pipes(loss[0], loss[1:])]
    for one in matrices(table.rows, made):
        parts += [f"## SelfSSIM [{one['note']}]: {one['title']}, {one['fields']} fields", pipes(one["heads"], one["cells"])]
        if one["shifts"]:
            parts.append(f"Mean absolute shift to the double, levels of 255: {one['shifts']}")
    parts += ["## How each figure was made"] if made else []
    for one in made:
        parts += [f"### [{one.number}] {one.heading}", pipes(["", "how"], lines_of(one))]
    return "\n\n".join(part for part in parts if part) + "\n"


def family_text(table: Table, places: Sequence[int], notes: Mapping[str, int]) -> str:
    """One table: our rows, then means over seeds, then published rows that have one of the figures."""
    columns, marked = [table.columns[k] for k in places], marks(table)
    heads = [f"{column.title}{ARROWS[column.better]}" + (f" [{notes[column.condition]}]" if column.condition else "")
             for column in columns]
    lines = [[row.name, *(cell(table.cells[index][k], lead(table, index, k) == "best", marked[index][k]) for k in places)]
             for index, row in enumerate(table.rows)]
    lines += [[one.name, *(pooled_text(one.cells[k]) for k in places)] for one in over_seeds(table)]
    lines += [[f"*published: {one.name} ({one.source})*",
               *(f"*{one.values[column.metric]:g}*" if column.metric in one.values else "–" for column in columns)]
              for one in table.printed if any(column.metric in one.values for column in columns)]
    return pipes(["", *heads], lines)


def lead(table: Table, row: int, column: int) -> str:
    """best; even where the second best is within the error; empty where another row is better, or none is."""
    if table.best[column] != row:
        return ""
    return "even" if table.even[column] else "best"


def pooled_text(cell: tuple[float, float] | None) -> str:
    """Mean ± standard deviation."""
    return f"{number(cell[0])} ± {cell[1]:.2g}" if cell else "–"


def cell(one: Metric | None, best: bool, marked: bool) -> str:
    """ "**5.340** ± 0.02 †"."""
    text = value_text(one)
    text = f"**{text}**" if best else text
    return " ".join(part for part in (text, error_text(one), MARK if marked else "") if part) if one else text


def pipes(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped, a line's end becomes a space."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, lines)])
