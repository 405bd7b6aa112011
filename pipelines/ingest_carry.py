"""A run that was cut short, and whose source has changed since: what it has done is taken over by the next. No Ray.

The next plan begins with the done units of the old one, each without those of its files that changed or vanished; the
files that no done unit has are cut into new units behind them. `take_over` copies the records of the former into the new
run, so that from there on they are units like all others. The laws stand in ingest_plan.py.
"""

import hashlib
import io
import json
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from infd import config_form, storage
from infd.data import shards, snapshot
from pipelines import ingest_plan, listing
from pipelines.ingest_plan import PASSING, Entry, Plan, Reject

pc: Any = pyarrow.compute  # it makes its functions at import, so no checker knows them


class Record(NamedTuple):
    """What a done unit left behind."""

    entries: list[Entry]
    rejects: list[Reject]


def continued(plan: Plan) -> Plan:
    """`plan`, or one of the same files that begins with the done units of an unfinished run.

    Law: a run whose listing is still the same goes on under its own name.
    """
    run = unfinished(plan)
    if run in ("", plan.run) or not plan.units:
        return plan
    todo, old = listing.table_of(plan.units.files), old_plan(plan, run)
    if old.num_rows == todo.num_rows and pc.all(pc.is_in(keys(todo), keys(old))).as_py():
        same = replace(plan, units=units_of(old))
        if same.run == run:  # it had taken over units itself, so its cuts are not those of `plan`
            return same
    records = usable(plan, run)
    failed = [row["uri"] for record in records.values() for row in record.rejects if row["reason"] in PASSING]
    unit = old["unit"].take(pc.index_in(keys(todo), keys(old)))  # null: a file that the old run did not know
    taken = pc.and_(pc.is_in(unit, pa.array(sorted(records), pa.int32())),
                    pc.invert(pc.is_in(todo["uri"], pa.array(failed, pa.large_string()))))
    if not pc.any(taken).as_py():
        return plan
    carried = todo.append_column("unit", unit).filter(taken).sort_by([("unit", "ascending"), ("uri", "ascending")])
    rest = ingest_plan.cut(listing.Files(todo.filter(pc.invert(taken))), plan.config)
    head = units_of(carried)
    numbers = carried["unit"].take(pa.array(head.starts, pa.int64())).to_pylist()
    files = pa.concat_tables([listing.table_of(units.files) for units in (head, rest)])
    starts = [*head.starts, *(len(head.files) + start for start in rest.starts)]
    return replace(plan, units=listing.Units(listing.Files(files), starts), continues=run, carried=tuple(numbers))


def take_over(plan: Plan) -> None:
    """Make the carried units of a written plan count as done; then, and not before, the new run is the unfinished one."""
    done = ingest_plan.done_units(plan.uri()) if plan.carried else set()

    def copy(number: int) -> None:
        record = read_record(run_uri(plan, plan.continues), plan.carried[number])
        files = {(info.uri, listing.version(info)) for info in plan.units[number]}
        ingest_plan.write_done(plan.uri(), number, [_only(entry, files) for entry in record.entries], [
            row for row in record.rejects if (row["uri"], row["etag"]) in files])

    ingest_plan.in_threads(copy, [number for number in range(len(plan.carried)) if number not in done])
    if unfinished(plan) != plan.run:
        storage.put_atomic(_pointer(plan), plan.run.encode())


def finish(plan: Plan) -> None:
    """Nothing of this run is to be continued."""
    storage.delete(_pointer(plan))


def unfinished(plan: Plan) -> str:
    """The newest run of this source and these settings that did not end; "" where there is none."""
    where = _pointer(plan)
    return storage.read_bytes(where).decode() if storage.exists(where) else ""


def _pointer(plan: Plan) -> str:
    """The key is all that the bytes of a unit's shards depend on, beside its files."""
    about = [ingest_plan.FORMAT, snapshot.FORMAT, shards.FORMAT, shards.versions(), config_form.flat(plan.config), plan.group,
             plan.source]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return storage.join(plan.dataset, "runs", "unfinished", key)


# ---------------------------------------------------------------- the old run


def run_uri(plan: Plan, run: str) -> str:
    return storage.join(plan.dataset, "runs", run)


def old_plan(plan: Plan, run: str) -> pa.Table:
    """plan.parquet of another run, as a table of a listing with the column `unit`; empty where it is gone."""
    schema = pa.schema([*listing.SCHEMA, ("unit", pa.int32())])
    where = storage.join(run_uri(plan, run), "plan.parquet")
    if not storage.exists(where):
        return schema.empty_table()
    return pq.read_table(io.BytesIO(storage.read_bytes(where))).select(schema.names).replace_schema_metadata().cast(schema)


def usable(plan: Plan, run: str) -> dict[int, Record]:
    """The done units of another run. Without those whose shards the parent has: that run had ended after all."""
    numbers = sorted(ingest_plan.done_units(run_uri(plan, run)))
    records = zip(numbers, ingest_plan.in_threads(lambda number: read_record(run_uri(plan, run), number), numbers),
                  strict=True)
    had = {entry["sha256"] for entry in plan.parent.entries} if plan.parent else set()
    return {number: record for number, record in records if had.isdisjoint(entry["sha256"] for entry in record.entries)}


def read_record(run: str, number: int) -> Record:
    """What a done unit of the run at `run` left behind."""
    return Record(*(ingest_plan.read_record(run, kind, number) for kind in ("done", "rejects")))


def _only(entry: Entry, files: set[tuple[str, str]]) -> Entry:
    """The entry without rows of other files. Rows that an earlier run dropped are none of `files` either."""
    names = zip(entry["uris"], entry["etags"], strict=True)
    return ingest_plan.dropping(entry, [r for r, name in enumerate(names) if name not in files])


# ---------------------------------------------------------------- tables


def keys(files: pa.Table) -> pa.ChunkedArray:
    """uri, etag and size of each file in one text: what must not change."""
    return pc.binary_join_element_wise(files["uri"], files["etag"], files["size"].cast(pa.large_string()),
                                       pa.scalar("\n", pa.large_string()))


def units_of(files: pa.Table) -> listing.Units:
    """Files that stand in the order of their column `unit`."""
    unit = files["unit"].to_numpy()
    starts = np.flatnonzero(np.diff(unit, prepend=-1)).tolist()
    return listing.Units(listing.Files(files.select(listing.SCHEMA.names)), starts)
