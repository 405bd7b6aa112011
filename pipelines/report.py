"""Reports of runs and evaluations: one self-contained HTML page, and the same in Markdown and JSON.

Reads what jobs/evaluate.py and training left: result.json, pictures, run.json, the metrics of checkpoints; no weights.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from infd import storage
from infd.errors import CheckpointError, InfdError
from infd.evaluation.errors import EvaluationError
from infd.evaluation.result import Result, read_result, worded
from pipelines import report_plots as plots
from pipelines import report_text, runs
from pipelines.published import IMAGES, published
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

logger = logging.getLogger(__name__)

FORMAT = "infd-report-1"
SHOWN_CROPS = 6
ARROWS = {"lower": "↓", "higher": "↑", "": ""}


def report(addresses: Sequence[str], out: str) -> str:
    """Write report.html, report.md and report.json into the folder or prefix `out`; the address of the page.

    `addresses`: runs, folders of runs such as sweeps, results, folders of results. Raises EvaluationError: nothing there.
    """
    rows = named(read_rows(addresses))
    table = table_of(rows, published({row.preset for row in rows}))
    said, out = verdict(table), storage.absolute(out)
    page = storage.join(out, "report.html")
    for name, data in (("report.json", as_json(table, said)), ("report.md", report_text.markdown(table, said)),
                       ("report.html", render(values(table, said)))):
        storage.put_atomic(storage.join(out, name), data.encode())
    return page


# ---------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Found:
    """A result and where it lies."""

    folder: str
    result: Result

    @property
    def judged(self) -> dict[str, Any]:
        return self.result.sources[-1]

    @property
    def key(self) -> str:
        """What tells rows apart: the address judged, and how its images were drawn."""
        about = {name: self.judged.get(name) for name in ("uri", "split", "sampling", "mode")}
        return json.dumps(about, sort_keys=True)


def read_rows(addresses: Sequence[str]) -> list[Row]:
    """A row for each thing that was judged, in the order of the addresses; a run without results is one too."""
    rows: dict[str, Row] = {}
    for address in (place for given in addresses for place in expanded(storage.absolute(given))):
        is_run = storage.exists(storage.join(address, "run.json"))
        found = list(results_below(storage.join(address, "evaluations") if is_run else address))
        if not is_run and not found:
            raise EvaluationError(f"{address}: neither a run nor a result.json; expected the folder of a training run, or what "
                                  "jobs/evaluate.py wrote; check the address")
        if is_run and not found:
            facts = runs.facts(address, alive=False)
            rows[address] = Row(name=base(address), address=address, run=facts, step=facts.best.step if facts.best else None)
        for one in found:
            rows[one.key] = added(rows.get(one.key) or row_of(one, address if is_run else ""), one)
    return list(rows.values())


def expanded(address: str) -> list[str]:
    """The runs of a sweep, a dataset or a folder of them; else the address itself."""
    if address.endswith("/result.json") or storage.exists(storage.join(address, "run.json")):
        return [address]
    try:
        return runs.found(address) or [address]
    except CheckpointError:
        return [address]


def results_below(address: str) -> Iterator[Found]:
    """The results at an address or below it, by name."""
    if address.endswith("/result.json"):
        yield Found(storage.parent(address), read_result(address))
        return
    for info in storage.list_objects(address):
        if info.uri.endswith("/result.json"):
            yield Found(storage.parent(info.uri), read_result(info.uri))


def row_of(one: Found, run: str) -> Row:
    """The row of what a result judged, with its run: the given one, or that of the checkpoint, where it can be read."""
    uri = str(one.judged["uri"])
    if not run and "checkpoint_sha256" in one.judged:
        run = storage.parent(storage.parent(uri))
    try:
        facts = runs.facts(run, alive=False) if run and storage.exists(storage.join(run, "run.json")) else None
    except InfdError as error:
        logger.warning("%s", error)
        facts = None
    return Row(name=base(run) if facts else base(uri), address=uri, run=facts, step=one.judged.get("step"))


def added(row: Row, one: Found) -> Row:
    if one.folder in row.folders:
        return row
    return Row(name=row.name, address=row.address, run=row.run, step=row.step, results=(*row.results, one.result),
               folders=(*row.folders, one.folder))


def base(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def named(rows: Sequence[Row]) -> list[Row]:
    """Rows with names of their own: with the step, the way of drawing, or the whole address where they share one."""
    for more in (lambda row: f"{row.name}, step {row.step}" if row.step is not None else row.name,
                 lambda row: f"{row.name} ({drawing(row)})" if drawing(row) else row.name,
                 lambda row: row.address):
        names = [row.name for row in rows]
        rows = [renamed(row, more(row)) if names.count(row.name) > 1 else row for row in rows]
    return list(rows)


def renamed(row: Row, name: str) -> Row:
    return Row(name=name, address=row.address, run=row.run, step=row.step, results=row.results, folders=row.folders)


def drawing(row: Row) -> str:
    """How the images of a row were drawn."""
    about = row.results[0].sources[-1] if row.results else {}
    sampling = about.get("sampling") or {}
    parts = [f"{sampling[name]} {name}" if name == "steps" else f"{name} {sampling[name]}"
             for name in ("sampler", "steps", "eta", "guidance", "weights") if name in sampling]
    return ", ".join([*parts, *([f"mode {about['mode']}"] if "mode" in about else [])])


# ---------------------------------------------------------------- what the page shows


def values(table: Table, said: Sequence[str]) -> dict[str, Any]:
    """All that the template shows."""
    rows = table.rows
    notes = report_text.column_notes(table)
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "verdict": said, "images": f"{IMAGES:,}",
        "title": " against ".join(row.name for row in rows) if len(rows) <= 3 else f"{len(rows)} rows",
        "columns": [{"title": column.title, "arrow": ARROWS[column.better], "note": notes.index(column.note) + 1 if column.note
                     else ""} for column in table.columns],
        "families": [{"name": name, "places": places} for name, places in families(table.columns).items()],
        "rows": [{"name": row.name, "colour": plots.colour(index), "preset": row.preset, "step": row.step,
                  "cells": [cell_of(one, table.best[k] == index) for k, one in enumerate(table.cells[index])]}
                 for index, row in enumerate(rows)],
        "pooled": [{"name": one.name, "cells": [report_text.pooled_text(cell) for cell in one.cells]}
                   for one in over_seeds(table)],
        "printed": [{"name": one.name, "source": one.source, "same": one.same,
                     "cells": [f"{one.values[column.metric]:g}" if column.metric in one.values else "–"
                               for column in table.columns]} for one in table.printed],
        "notes": notes, "settings": settings_rows(rows), "cautions": report_text.cautions(rows),
        "crops": crop_groups(rows), "sheets": sheets(rows), "extremes": extremes(rows), "sizes": size_rows(rows),
        "scale_plot": scale_plot(rows), "scale_table": report_text.scale_rows(rows),
        "spectra": spectra_plots(rows), "spread": spread_plots(rows), "matrices": report_text.matrices(rows),
        "made": [made_line(row) for row in rows],
    }


def cell_of(one: Any, best: bool) -> dict[str, Any]:
    return {"text": report_text.value_text(one), "more": report_text.error_text(one) if one else "", "best": best}


def render(shown: dict[str, Any]) -> str:
    """The template, filled; every text is escaped, because names of files are anyone's."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True,
                              autoescape=select_autoescape(default=True, default_for_string=True))
    return environment.get_template("report.html.j2").render(shown)


def made_line(row: Row) -> dict[str, Any]:
    """What was judged, from what."""
    return {"name": row.name, "address": row.address, "preset": row.preset or "–",
            "snapshot": row.run.record["snapshot"] if row.run else "–", "step": row.step if row.step is not None else "–",
            "how": drawing(row) or "–", "results": row.folders}


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Album:
    """The pictures of one result of one row."""

    row: int
    folder: str
    result: Result
    made: dict[str, Any]

    def picture(self, name: str) -> str:
        """As a data URI."""
        return plots.jpeg(storage.read_bytes(storage.join(self.folder, "pictures", name)))


def albums(rows: Sequence[Row]) -> Iterator[Album]:
    """Of results that have pictures."""
    for index, row in enumerate(rows):
        for folder, result in zip(row.folders, row.results, strict=True):
            where = storage.join(folder, "pictures.json")
            if storage.exists(where):
                yield Album(index, folder, result, json.loads(storage.read_bytes(where)))


def grouped(rows: Sequence[Row], has: str) -> dict[str, list[Album]]:
    """Albums that have pictures of a kind, by their condition: those of a group show the same images and places."""
    found: dict[str, list[Album]] = {}
    for album in albums(rows):
        if album.made.get(has):
            found.setdefault(condition_of(album.result), []).append(album)
    return found


def heads(group: Sequence[Album], rows: Sequence[Row]) -> list[dict[str, str]]:
    """The columns of a group: what is true, then each row."""
    return [{"name": "photograph", "colour": plots.REAL},
            *({"name": rows[album.row].name, "colour": plots.colour(album.row)} for album in group)]


def crop_groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Crops side by side: of the truth and of each row, at the same place."""
    shown = []
    seen: list[object] = []
    for group in grouped(rows, "crops").values():
        first = group[0]
        same = [[album.row for album in group], [(crop["name"], crop["caption"]) for crop in first.made["crops"]]]
        if same in seen:                                # two protocols cut the same crops
            continue
        seen.append(same)
        lines = []
        for k, crop in enumerate(first.made["crops"][:SHOWN_CROPS]):
            pictures = [first.picture(crop["a"])]
            pictures += [album.picture(album.made["crops"][k]["b"]) if k < len(album.made["crops"]) else "" for album in group]
            lines.append({"name": crop["name"], "caption": crop["caption"], "pictures": pictures})
        shown.append({"title": figures_title(first.result), "heads": heads(group, rows), "lines": lines,
                      "paired": all(crop["name"] == crop["of_b"] for album in group for crop in album.made["crops"])})
    return shown


def figures_title(result: Result) -> str:
    """ "pFID 256/1K" of a result of distances; the protocol's name else."""
    kinds = [title(one.name) for one in result.metrics]
    return f"{result.protocol}: {', '.join(kinds[:3])}" if len(kinds) <= 3 else result.protocol


def sheets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A contact sheet for each row and one of the truth; the first that each has."""
    shown: dict[int, dict[str, Any]] = {}
    real: dict[str, str] = {}
    for album in albums(rows):
        made = album.made.get("sheets") or {}
        if made and album.row not in shown:
            truth = str(album.result.sources[0]["uri"])
            if truth not in real:
                real[truth] = album.picture(made["a"])
            shown[album.row] = {"name": rows[album.row].name, "colour": plots.colour(album.row),
                                "src": album.picture(made["b"])}
    return [*({"name": f"photographs of {uri}", "colour": plots.REAL, "src": src} for uri, src in real.items()),
            *(shown[index] for index in sorted(shown))]


def extremes(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Worst and best pairs of each row."""
    shown = []
    for album in albums(rows):
        for which in ("worst", "best"):
            if pairs := album.made.get(which):
                shown.append({
                    "title": f"{rows[album.row].name}: {which} by {title(pairs[0]['metric'])}",
                    "colour": plots.colour(album.row),
                    "pairs": [{"name": pair["name"], "value": report_text.number(float(pair["value"])),
                               "a": album.picture(pair["a"]), "b": album.picture(pair["b"])} for pair in pairs]})
    return shown


def size_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Renders of the same fields at all sides."""
    shown = []
    for album in albums(rows):
        for row in album.made.get("sizes") or ():
            shown.append({"title": f"{rows[album.row].name}: {row['name']}", "colour": plots.colour(album.row),
                          "panels": [{"caption": caption, "src": album.picture(name)}
                                     for name, caption in zip(row["files"], row["captions"], strict=True)]})
    return shown


# ---------------------------------------------------------------- plots


def scale_plot(rows: Sequence[Row]) -> str:
    """A validation metric by scale, in the colours of the rows; "" where no run has it."""
    metric = scale_metric(rows)
    shown = {row.name for row in one_a_run(rows)}
    curves = {row.name: (plots.colour(index), curve) for index, row in enumerate(rows)
              if row.name in shown and (curve := scales(row, metric))}
    return plots.by_scale(curves, metric) if curves else ""


def spectra_plots(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A plot for each condition of spectra."""
    groups: dict[str, list[tuple[int, Result]]] = {}
    for index, row in enumerate(rows):
        for result in row.results:
            if "power_b" in result.curves:
                groups.setdefault(condition_of(result), []).append((index, result))
    made = []
    for group in groups.values():
        first = group[0][1]
        frequencies = first.curves["cycles_per_image"]
        judged = {rows[index].name: (plots.colour(index), result.curves["power_b"]) for index, result in group}
        made.append({"caption": condition_text(first), "src": plots.spectra(
            frequencies, first.curves["power_a"], judged, side=int(first.choices["crops.p"]))})
    return made


def spread_plots(rows: Sequence[Row]) -> list[str]:
    """For each metric of pairs at its largest size, every image of every row."""
    found: dict[tuple[str, str], dict[str, tuple[str, Sequence[float]]]] = {}
    for index, row in enumerate(rows):
        for result in row.results:
            sides = [int(one.name.split("@")[1]) for one in result.metrics if "@" in one.name]
            for one in result.metrics:
                last = not sides or one.name.endswith(f"@{max(sides)}")
                if one.over == "images" and last and one.name.startswith(("psnr", "lpips")) and "pairs" in result.counts:
                    found.setdefault((one.name, condition_of(result)), {})[row.name] = (plots.colour(index), one.values)
    return [plots.over_images(found_of, title(name)) for (name, _), found_of in found.items()]


# ---------------------------------------------------------------- JSON


def as_json(table: Table, said: Sequence[str]) -> str:
    """The table with everything that its numbers hang on."""
    tree = {
        "format": FORMAT, "verdict": list(said),
        "columns": [{"metric": column.metric, "title": column.title, "better": column.better, "conditions": column.note}
                    for column in table.columns],
        "rows": [{"name": row.name, "address": row.address, "preset": row.preset, "step": row.step,
                  "values": [one.value if one else None for one in table.cells[index]],
                  "errors": [report_text.error_of(one) or None if one else None for one in table.cells[index]],
                  "validation_loss_by_r": scales(row), "results": list(row.folders)} for index, row in enumerate(table.rows)],
        "published": [{"name": one.name, "source": one.source, "preset": one.preset, "same_as_preset": one.same,
                       "values": [one.values.get(column.metric) for column in table.columns]} for one in table.printed]}
    return json.dumps(worded(tree), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
