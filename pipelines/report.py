"""Reports of runs and evaluations: one self-contained HTML page, and the same in Markdown and JSON.

Reads what jobs/evaluate.py and training left: result.json, pictures, run.json, the metrics of checkpoints; no weights.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from infd import storage
from infd.evaluation.result import Metric, Result, worded
from pipelines import report_pictures, report_text
from pipelines import report_plots as plots
from pipelines.published import IMAGES, published
from pipelines.report_choices import as_tree, conditions, lines_of
from pipelines.report_departures import MARK, departures, marks, sentences
from pipelines.report_rows import drawing, named, read_rows
from pipelines.report_tables import (
    Row,
    Table,
    condition_of,
    condition_text,
    families,
    one_a_run,
    over_seeds,
    scale_metric,
    scales,
    settings_rows,
    table_of,
    title,
)
from pipelines.report_verdict import verdict

FORMAT = "infd-report-1"
ARROWS = {"lower": "↓", "higher": "↑", "": ""}


def report(addresses: Sequence[str], out: str) -> str:
    """Write report.html, report.md and report.json into the folder or prefix `out`; the address of the page.

    `addresses`: runs, folders of runs such as sweeps, results, folders of results. Raises EvaluationError: nothing there.
    """
    rows = named(read_rows(addresses))
    table = table_of(rows, published({row.preset for row in rows}))
    said, out = verdict(table_of([row for row in rows if not row.stale])), storage.absolute(out)
    page = storage.join(out, "report.html")
    for name, data in (("report.json", as_json(table, said)), ("report.md", report_text.markdown(table, said)),
                       ("report.html", render(values(table, said)))):
        storage.put_atomic(storage.join(out, name), data.encode())
    return page


# ---------------------------------------------------------------- what the page shows


def values(table: Table, said: Sequence[str]) -> dict[str, Any]:
    """All that the template shows."""
    rows, made, marked = table.rows, conditions(table), marks(table)
    numbers = report_text.numbers(made)
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "verdict": said, "images": f"{IMAGES:,}",
        "title": " against ".join(row.name for row in rows) if len(rows) <= 3 else f"{len(rows)} rows",
        "columns": [{"title": column.title, "arrow": ARROWS[column.better], "note": numbers[column.condition]
                     if column.condition else ""} for column in table.columns],
        "families": [{"name": name, "places": places} for name, places in families(table.columns).items()],
        "rows": [{"name": row.name, "colour": plots.colour(index), "preset": row.preset, "step": row.step,
                  "stale": row.stale, "cells": [cell_of(one, best=report_text.lead(table, index, k), marked=marked[index][k])
                            for k, one in enumerate(table.cells[index])]}
                 for index, row in enumerate(rows)],
        "pooled": [{"name": one.name, "cells": [report_text.pooled_text(cell) for cell in one.cells]}
                   for one in over_seeds(table)],
        "printed": [{"name": one.name, "source": one.source, "same": one.same,
                     "cells": [f"{one.values[column.metric]:g}" if column.metric in one.values else "–"
                               for column in table.columns]} for one in table.printed],
        "departures": sentences(table, numbers), "mark": MARK,
        "conditions": [{"number": one.number, "text": one.text, "heading": one.heading, "lines": lines_of(one)}
                       for one in made],
        "settings": settings_rows(rows), "cautions": report_text.cautions(rows),
        "crops": report_pictures.crop_groups(rows), "sheets": report_pictures.sheets(rows),
        "extremes": report_pictures.extremes(rows), "sizes": report_pictures.size_rows(rows),
        "scale_plot": scale_plot(rows), "scale_table": report_text.scale_rows(rows),
        "spectra": spectra_plots(rows, numbers), "spread": spread_plots(rows), "matrices": report_text.matrices(rows, made),
        "made": [made_line(row) for row in rows],
    }


def cell_of(one: Metric | None, *, best: str, marked: bool) -> dict[str, Any]:
    return {"text": report_text.value_text(one), "more": report_text.error_text(one) if one else "", "best": best,
            "mark": MARK if one and marked else ""}


def render(shown: dict[str, Any]) -> str:
    """The template, filled; every text is escaped, because names of files are anyone's."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True,
                              autoescape=select_autoescape(default=True, default_for_string=True))
    return environment.get_template("report.html.j2").render(shown)


def made_line(row: Row) -> dict[str, Any]:
    """What was judged, from what."""
    return {"name": row.name, "address": row.address, "preset": row.preset or "–",
            "snapshot": row.run.record["snapshot"] if row.run else "–", "step": row.step if row.step is not None else "–",
            "how": drawing(row) or "–", "content": row.content[:12] or "–", "stale": row.stale, "results": row.folders}


# ---------------------------------------------------------------- plots


def scale_plot(rows: Sequence[Row]) -> str:
    """A validation metric by scale, in the colours of the rows; "" where no run has it."""
    metric = scale_metric(rows)
    shown = {row.name for row in one_a_run(rows)}
    curves = {row.name: (plots.colour(index), curve) for index, row in enumerate(rows)
              if row.name in shown and (curve := scales(row, metric))}
    return plots.by_scale(curves, metric) if curves else ""


def spectra_plots(rows: Sequence[Row], numbers: Mapping[str, int]) -> list[dict[str, str]]:
    """A plot for each condition of spectra, with its number."""
    groups: dict[str, list[tuple[int, Result]]] = {}
    for index, row in enumerate(rows):
        for result in row.results:
            if "power_b" in result.curves:
                groups.setdefault(condition_of(result), []).append((index, result))
    made = []
    for key, group in groups.items():
        first = group[0][1]
        frequencies = first.curves["cycles_per_image"]
        judged = {rows[index].name: (plots.colour(index), result.curves["power_b"]) for index, result in group}
        made.append({"caption": f"[{numbers[key]}] {condition_text(first)}", "src": plots.spectra(
            frequencies, first.curves["power_a"], judged, side=int(first.choices["crops.p"]))})
    return made


def spread_plots(rows: Sequence[Row]) -> list[str]:
    """For each metric of pairs at its largest size, every image of every row, or every pool of them."""
    found: dict[tuple[str, str, str], dict[str, tuple[str, Sequence[float]]]] = {}
    for index, row in enumerate(rows):
        for result in row.results:
            sides = [int(one.name.split("@")[1]) for one in result.metrics if "@" in one.name]
            for one in result.metrics:
                last = not sides or one.name.endswith(f"@{max(sides)}")
                if one.over != "seeds" and last and one.name.startswith(("psnr", "lpips")) and "pairs" in result.counts:
                    key = one.name, one.over, condition_of(result)
                    found.setdefault(key, {})[row.name] = plots.colour(index), one.values
    return [plots.over_images(found_of, title(name), over=over) for (name, over, _), found_of in found.items()]


# ---------------------------------------------------------------- JSON


def as_json(table: Table, said: Sequence[str]) -> str:
    """The table with everything that its numbers hang on."""
    made = conditions(table)
    of = {one.key: one for one in made}
    tree = {
        "format": FORMAT, "verdict": list(said), "cautions": report_text.cautions(table.rows),
        "columns": [{"metric": column.metric, "title": column.title, "better": column.better,
                     "conditions": of[column.condition].text if column.condition else "",
                     "number": of[column.condition].number if column.condition else None} for column in table.columns],
        "conditions": [as_tree(one) for one in made],
        "rows": [{"name": row.name, "address": row.address, "preset": row.preset, "step": row.step, "content": row.content,
                  "changed_since": row.stale, "values": [one.value if one else None for one in table.cells[index]],
                  "errors": [report_text.error_of(one) or None if one else None for one in table.cells[index]],
                  "departures": departures_tree(table, row), "validation_loss_by_r": scales(row), "results": list(row.folders),
                  "superseded": [{"folder": one.folder, "by": one.by} for one in row.superseded]}
                 for index, row in enumerate(table.rows)],
        "published": [{"name": one.name, "source": one.source, "preset": one.preset, "same_as_preset": one.same,
                       "values": [one.values.get(column.metric) for column in table.columns]} for one in table.printed]}
    return json.dumps(worded(tree), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def departures_tree(table: Table, row: Row) -> list[list[str]]:
    """For each column what was done otherwise than for the published figures there; [] where there are none."""
    found = departures(row, table.printed)
    return [found.get((column.metric, column.condition), []) for column in table.columns]
