"""Rows of a report: what was judged, told apart by its address, its content and how its images were drawn; and their names."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infd import checkpoint, storage
from infd.data.snapshot import newest_number, split_address
from infd.errors import CheckpointError, InfdError, StorageError
from infd.evaluation.errors import EvaluationError
from infd.evaluation.result import Result, read_result
from pipelines import runs
from pipelines.report_tables import Row, Superseded, condition_of, drawn
from pipelines.sweep_plan import value_text
from pipelines.sweep_trials import VALUES

logger = logging.getLogger(__name__)


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
        """What tells rows apart: the address judged, what lay there, and how its images were drawn."""
        split = self.judged.get("split") if self.judged.get("kind") == "dataset" else None
        return json.dumps([self.judged.get("uri"), split, content_of(self.judged), drawn(self.judged)], sort_keys=True)


def content_of(judged: dict[str, Any]) -> str:
    """Hash of latents, or of the weights of what renders, whatever it rendered; of other sources their fingerprint."""
    return str(next((judged[name] for name in ("latents_sha256", "checkpoint_sha256", "fingerprint") if name in judged), ""))


# ---------------------------------------------------------------- what there is


def read_rows(addresses: Sequence[str]) -> list[Row]:
    """A row for each thing that was judged, in the order of the addresses; a run without results is one too.

    Law: a row holds results of one content, and each figure of each condition once. Raises EvaluationError: an address has
    nothing.
    """
    rows: dict[str, Row] = {}
    for address in (place for given in addresses for place in expanded(storage.absolute(given))):
        is_run = storage.exists(storage.join(address, "run.json"))
        found = list(results_below(storage.join(address, "evaluations") if is_run else address))
        if not is_run and not found:
            raise EvaluationError(f"{address}: neither a run nor a result.json; expected the folder of a training run, or what "
                                  "jobs/evaluate.py wrote; check the address")
        if is_run and not found:
            facts = runs.facts(address, alive=False)
            step = facts.best.step if facts.best else None
            rows[address] = Row(name=run_name(address), address=address, run=facts, step=step)
        for one in found:
            rows[one.key] = added(rows.get(one.key) or row_of(one, address if is_run else ""), one)
    return [settled(row) for row in rows.values()]


def expanded(address: str) -> list[str]:
    """The runs of a sweep, a dataset or a folder of them, and the results in such a folder that lie in no run; else the
    address itself."""
    if address.endswith("/result.json") or storage.exists(storage.join(address, "run.json")):
        return [address]
    try:
        found = runs.found(address)
    except CheckpointError:
        return [address]
    if not found or newest_number(split_address(storage.absolute(address))[0]) is not None:
        return found or [address]
    besides = [info.uri for info in storage.list_objects(storage.absolute(address)) if info.uri.endswith("/result.json")]
    return found + [uri for uri in besides if not any(uri.startswith(f"{run}/") for run in found)]


def results_below(address: str) -> Iterator[Found]:
    """The results at an address or below it, by name."""
    if address.endswith("/result.json"):
        yield Found(storage.parent(address), read_result(address))
        return
    for info in storage.list_objects(address):
        if info.uri.endswith("/result.json"):
            yield Found(storage.parent(info.uri), read_result(info.uri))


def row_of(one: Found, run: str) -> Row:
    """The row of what a result judged, with its run: the given one, or that of the checkpoint, where it can be read.

    A checkpoint that is another one today has no run.
    """
    uri, stale = str(one.judged["uri"]), changed_since(one.judged)
    if not run and "checkpoint_sha256" in one.judged:
        run = storage.parent(storage.parent(uri))
    try:
        facts = runs.facts(run, alive=False) if run and storage.exists(storage.join(run, "run.json")) else None
    except InfdError as error:
        logger.warning("%s", error)
        facts = None
    return Row(name=run_name(run) if facts else base(uri), address=uri, run=None if stale else facts,
               step=one.judged.get("step"), content=content_of(one.judged), stale=stale)


def changed_since(judged: dict[str, Any]) -> bool:
    """Whether the checkpoint that was judged is another one today. One that is gone, as old ones are, has not changed."""
    if judged.get("kind") not in ("reconstructions", "seeds"):
        return False
    try:
        today = checkpoint.load(str(judged["uri"])).files[checkpoint.MODEL]["sha256"]
    except (CheckpointError, StorageError):
        return False
    return today != judged["checkpoint_sha256"]


def added(row: Row, one: Found) -> Row:
    if one.folder in row.folders:
        return row
    return replace(row, results=(*row.results, one.result), folders=(*row.folders, one.folder))


def base(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def run_name(uri: str) -> str:
    """The run's folder; of a sweep's trial also what was tried, `003: lr=0.002 gan=0.5, seed 1`."""
    place = storage.join(uri, VALUES)
    if not storage.exists(place):
        return base(uri)
    told = json.loads(storage.read_bytes(place))
    tried = " ".join(f"{name.rsplit('.', 1)[-1]}={value_text(value)}" for name, value in told["values"].items())
    seed = f"seed {told['seed']}"
    return f"{base(uri)}: {', '.join(filter(None, (tried, seed)))}"


# ---------------------------------------------------------------- one result of each condition


def settled(row: Row) -> Row:
    """The row with one result of the same figures under the same condition: that of the newest library, or the first by name;
    others are superseded."""
    groups: dict[tuple[str, ...], list[Found]] = {}
    for folder, result in zip(row.folders, row.results, strict=True):
        figures = condition_of(result), *sorted(one.name for one in result.metrics)
        groups.setdefault(figures, []).append(Found(folder, result))
    shown, beside = [], []
    for group in groups.values():
        by_name = sorted(group, key=lambda one: one.folder)
        first, *others = sorted(by_name, key=lambda one: release(one.result), reverse=True)
        shown.append(first)
        beside += [Superseded(one.folder, one.result, first.folder) for one in others]
    return replace(row, results=tuple(one.result for one in shown), folders=tuple(one.folder for one in shown),
                   superseded=tuple(beside))


def release(result: Result) -> tuple[int, ...]:
    """(0, 2, 1) of the library that made a result; () where it is not told."""
    found = re.match(r"\d+(\.\d+)*", result.versions.get("infd", ""))
    return tuple(map(int, found[0].split("."))) if found else ()


# ---------------------------------------------------------------- names


def named(rows: Sequence[Row]) -> list[Row]:
    """Rows with names of their own: with the step, the way of drawing, the content, or the whole address, whichever tells
    those of one name apart."""
    ways: tuple[Callable[[Row], str], ...] = (
        lambda row: f"{row.name}, step {row.step}" if row.step is not None else row.name,
        lambda row: f"{row.name} ({drawing(row)})" if drawing(row) else row.name,
        lambda row: f"{row.name}, content {row.content[:8]}" if row.content else row.name,
        lambda row: row.address)
    rows = list(rows)
    for way in ways:
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row.name, set()).add(way(row))
        rows = [replace(row, name=way(row)) if len(found[row.name]) > 1 else row for row in rows]
    return rows


def drawing(row: Row) -> str:
    """How the images of a row were drawn, but for what is as ever."""
    about = row.results[0].sources[-1] if row.results else {}
    sampling, way = about.get("sampling") or {}, drawn(about)
    parts = [f"{sampling[name]} {name}" if name == "steps" else f"{name} {sampling[name]}"
             for name in ("sampler", "steps", "eta", "guidance", "weights") if name in sampling]
    parts += [f"{name} {sampling[name]}" for name in ("group", "context") if sampling.get(name)]
    parts += [f"mode {about['mode']}"] if "mode" in about else []
    parts += ["rounded down to 8 bits"] if way["to_8_bits"] == "down" else []
    parts += [f"seeds from {way['first_seed']}"] if way["first_seed"] not in ("", "0") else []
    parts += [f"split {about['split']}"] if about.get("kind") == "dataset" and about["split"] != "all" else []
    return ", ".join(parts)
