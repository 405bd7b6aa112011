"""What sets our figures apart from published ones in the same column, so that nobody takes them for equal.

The published protocol is in published.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infd.evaluation.result import Result
from pipelines.published import IMAGES, MODE, REAL_IMAGES, SAMPLING, TO_8_BITS, Published
from pipelines.report_tables import Row, Table, condition_of, figures, title

KINDS = {"reconstructions": "reconstructions of photographs, not generated images",
         "latents": "photographs from their latents, not generated images",
         "files": "images of files, of which it is not known how they were drawn",
         "dataset": "the photographs of a dataset, not generated images"}
RENDERED = ("seeds", "reconstructions", "latents")
Key = tuple[str, str]
"""(metric, condition)."""
MARK = "†"
"""Beside a figure that was made otherwise than the published ones of its column."""


def departures(row: Row, printed: Sequence[Published]) -> dict[Key, list[str]]:
    """What was done otherwise than in the paper, of the row's figures that published ones stand beside."""
    found: dict[Key, list[str]] = {}
    for result, one in figures(row):
        presets = [other.preset for other in printed if one.name in other.values]
        if presets:
            found[one.name, condition_of(result)] = list(of_result(result, row, presets))
    return found


def of_result(result: Result, row: Row, presets: Sequence[str]) -> Iterator[str]:
    """In words, each difference from the published protocol."""
    truth, judged = result.sources[0], result.sources[-1]
    if result.counts["b"] != IMAGES:
        yield f"{result.counts['b']:,} images instead of {IMAGES:,}"
    if row.preset and row.preset not in presets:
        yield f"the preset {row.preset} instead of {' or '.join(dict.fromkeys(presets))}"
    if judged.get("kind") in KINDS:
        yield KINDS[judged["kind"]]
    yield from of_sampling(judged.get("sampling") or {}, row)
    if judged.get("kind") in RENDERED:
        if judged.get("mode") != MODE:
            yield f"norms of mode {judged.get('mode')} instead of {MODE}"
        if judged.get("to_8_bits", "nearest") != TO_8_BITS:
            yield "levels rounded to 8 bits where the paper cuts them off"
    yield from of_truth(result, truth, presets)
    if result.choices.get("ddof", 1) != 1:
        yield "covariances divided by N instead of N − 1"


def of_sampling(sampling: dict[str, Any], row: Row) -> Iterator[str]:
    """Of images drawn from seeds. What a sampler of "auto" is, the run's objective tells."""
    if not sampling:
        return
    flow = row.run is not None and row.run.record["config"].get("diffusion.objective") == "flow"
    sampler = sampling.get("sampler", "auto")
    found = sampling | {"sampler": ("heun" if flow else "ddim") if sampler == "auto" else sampler}
    for name, theirs in SAMPLING.items():
        ours = found.get(name, theirs)
        if ours != theirs and not (name == "eta" and found["sampler"] != "ddim"):
            yield f"{ours} sampler steps instead of {theirs}" if name == "steps" else f"{name} {ours} instead of {theirs}"
    for name in ("group", "context"):
        if found.get(name):
            yield f"{name} {found[name]} alone"


def of_truth(result: Result, truth: dict[str, Any], presets: Sequence[str]) -> Iterator[str]:
    """Of the real set."""
    wanted = next((REAL_IMAGES[preset] for preset in presets if preset in REAL_IMAGES), result.counts["a"])
    if result.counts["a"] != wanted:
        yield f"{result.counts['a']:,} real images instead of {wanted:,}"
    if truth.get("split", "all") != "all":
        yield f"split {truth['split']} of the real images alone"
    if truth.get("kind") == "dataset":
        yield "real images from a dataset's tiles instead of the files"


def sentences(table: Table, numbers: Mapping[str, int]) -> list[str]:
    """One for each row that has figures beside published ones. `numbers` of the conditions."""
    said = []
    for row in table.rows:
        found = {f"{title(name)} [{numbers[condition]}]": ways
                 for (name, condition), ways in departures(row, table.printed).items()}
        if not found:
            continue
        phrases: dict[str, list[str]] = {}
        for name, ways in found.items():
            for way in ways:
                phrases.setdefault(way, []).append(name)
        parts = [way if len(names) == len(found) else f"{way} ({', '.join(names)})" for way, names in phrases.items()]
        said.append(f"{row.name}, {', '.join(found)}: differs from the published protocol by {'; '.join(parts)}." if parts
                    else f"{row.name}, {', '.join(found)}: follows the published protocol, as far as the papers tell.")
    return said


def marks(table: Table) -> list[list[bool]]:
    """Of each row and column whether the figure there was made otherwise than published ones beside it."""
    found = [departures(row, table.printed) for row in table.rows]
    return [[bool(of_row.get((column.metric, column.condition))) for column in table.columns] for of_row in found]
