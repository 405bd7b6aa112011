"""Words and numbers of a report, the same on the page and in Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from infd.evaluation.result import Metric, Result
from pipelines.published import IMAGES
from pipelines.report_tables import Row, Table, error_of, families, over_seeds, scale_metric, scales, settings_rows

ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


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


def column_notes(table: Table) -> list[str]:
    """The conditions of columns, each once."""
    return list(dict.fromkeys(column.note for column in table.columns if column.note))


def cautions(rows: Sequence[Row]) -> list[str]:
    """What results say of themselves that a reader must know."""
    return list(dict.fromkeys(note for row in rows for result in row.results for note in result.notes))


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


def matrices(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """SelfSSIM of each row's fields, by how renders are resized: row = side of comparison, column = the other's side."""
    shown = []
    for row in rows:
        for result in row.results:
            for how in dict.fromkeys(one.name.split("[")[1].split("]")[0] for one in result.metrics
                                     if one.name.startswith("self_ssim")):
                shown.append(matrix(row, result, how))
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
    notes = column_notes(table)
    parts = ["# Evaluation", "\n".join(f"- {sentence}" for sentence in said)]
    for name, places in families(table.columns).items():
        parts += [f"## {name}", family_text(table, places, notes)]
    parts.append("\n".join(f"[{index}] {note}" for index, note in enumerate(notes, 1)))
    if table.printed:
        parts.append(f"Published figures are over {IMAGES:,} generated images with Inception's features; no others compare.")
    if settings := settings_rows(table.rows):
        parts += ["## Settings that differ", pipes(settings[0], settings[1:])]
    if loss := scale_rows(table.rows):
        parts += ["## Validation by side r", pipes(loss[0], loss[1:])]
    for one in matrices(table.rows):
        parts += [f"## SelfSSIM: {one['title']}, {one['fields']} fields", pipes(one["heads"], one["cells"])]
        if one["shifts"]:
            parts.append(f"Mean absolute shift to the double, levels of 255: {one['shifts']}")
    parts += [f"Note: {note}" for note in cautions(table.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def family_text(table: Table, places: Sequence[int], notes: Sequence[str]) -> str:
    """One table: our rows, then means over seeds, then published rows that have one of the figures."""
    columns = [table.columns[k] for k in places]
    heads = [f"{column.title}{ARROWS[column.better]}" + (f" [{notes.index(column.note) + 1}]" if column.note else "")
             for column in columns]
    lines = [[row.name, *(cell(table.cells[index][k], table.best[k] == index) for k in places)]
             for index, row in enumerate(table.rows)]
    lines += [[one.name, *(pooled_text(one.cells[k]) for k in places)] for one in over_seeds(table)]
    lines += [[f"*published: {one.name} ({one.source})*",
               *(f"*{one.values[column.metric]:g}*" if column.metric in one.values else "–" for column in columns)]
              for one in table.printed if any(column.metric in one.values for column in columns)]
    return pipes(["", *heads], lines)


def pooled_text(cell: tuple[float, float] | None) -> str:
    """Mean ± standard deviation."""
    return f"{number(cell[0])} ± {cell[1]:.2g}" if cell else "–"


def cell(one: Metric | None, best: bool) -> str:
    text = value_text(one)
    text = f"**{text}**" if best else text
    return f"{text} {error_text(one)}".strip() if one else text


def pipes(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped, a line's end becomes a space."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, lines)])
