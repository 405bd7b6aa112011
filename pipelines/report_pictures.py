"""Pictures of a report, from the albums that evaluations left: crops, contact sheets, worst and best pairs, all sides."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infd import storage
from infd.evaluation.result import Result
from pipelines import report_plots as plots
from pipelines import report_text
from pipelines.report_tables import Row, condition_of, title

SHOWN_CROPS = 6


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
    """A contact sheet for each row and one of the truth, the first that each has, with how it was drawn."""
    shown: dict[int, dict[str, Any]] = {}
    real: dict[str, dict[str, Any]] = {}
    for album in albums(rows):
        made = album.made.get("sheets") or {}
        if made and album.row not in shown:
            truth, how = str(album.result.sources[0]["uri"]), album.made.get("sheets_made") or {}
            if truth not in real:
                real[truth] = {"name": f"photographs of {truth}", "colour": plots.REAL, "src": album.picture(made["a"]),
                               "how": how.get("a", "")}
            shown[album.row] = {"name": rows[album.row].name, "colour": plots.colour(album.row),
                                "src": album.picture(made["b"]), "how": how.get("b", "")}
    return [*real.values(), *(shown[index] for index in sorted(shown))]


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
