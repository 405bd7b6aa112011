"""What an ingest has to do, written down before it begins; and what became of it, put together at the end. No Ray.

    DATASET/runs/RUN/plan.parquet           every source file to read, in the order of its uri, with its unit
    DATASET/runs/RUN/done/00000003.parquet  unit 3 is finished: a row a shard, as in the manifest; written last
    DATASET/runs/RUN/rejects/00000003.parquet   its source files that are no photo
    DATASET/runs/RUN/attempts/00000003.json     unit 3 is at work (ingest_attempts.py); gone when it is done
    DATASET/runs/RUN/rejects.parquet        all source files that are no photo, of this snapshot and those before
    DATASET/runs/RUN/finished.json          when, where, with what: facts that the manifest must not hold
    DATASET/runs/unfinished/KEY             the name of the newest run of this source and these settings, until it ends

RUN is the hash of the plan, the config and the parent snapshot, so the same command finds what it has done before.
Law: where no run was cut short, a snapshot is a function of (parent, listing, config); so it is where one was, and the
source lists the same when the command is run again.

Where the source gained, lost or changed files while a run was cut short, the next one takes over what is done
(ingest_carry.py): no photo that was read and written is read again, as long as its uri, etag and size stay, also if the
dataset went on to another snapshot meanwhile. Then the law is weaker: the same photos under the same uris, with the same
tiles, and the same rejects as an undisturbed ingest of that listing (where none of its reads fails), but in shards that
may be cut elsewhere, stand in another order, and hold rows of files that changed or vanished since, which are `dropped`.

What stands in the parent under the same (uri, etag; and size, see listing.version) is not read again. A photo whose file
changed is read anew; its old row stays in its shard and is named in the manifest's `dropped`. A file that vanished from
the source keeps its photo, unless the plan removes what is missing; then photos of this source go the same way, those of
other sources stay. Of photos with equal bytes the parent's is kept, else the first by uri; the other is rejected as
`duplicate`, and read again only if the one that was kept is replaced or removed. Files that were rejected for a PASSING
reason are tried again by the next ingest, also where this one made no snapshot.
"""

import functools
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infd import config_form, storage
from infd.config import IngestConfig
from infd.data import shards, snapshot
from infd.errors import ConfigError, DatasetError, StorageError
from infd.storage import ObjectInfo
from pipelines import listing

FORMAT = "infd-ingest-1"
LEAST_UNITS = 64
"""A small source is cut into about this many units, so that all cores have work."""
LEAST_UNIT_PHOTOS = 4
PLAN = pa.schema([("unit", pa.int32()), *listing.SCHEMA])
REJECTS = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("reason", pa.string()), ("detail", pa.string()),
                     ("image_id", pa.string())])  # image_id of a duplicate, else ""
PASSING = ("changed", "unreadable", "no_decoder", "killed")
"""Reasons that say nothing of the file itself: the next ingest tries again."""
MOST_REMOVED = 0.5
"""Share of a source's photos that may go at once. A listing that lacks more is more often a source that was renamed, is
not mounted, or is emptied by mistake, than one that was cleaned; less than half is a common clean-up, and no night's
refresh shall stop for that. Nothing is lost for ever either way: older snapshots keep what was removed."""
SHARED_FIELDS = ("tile_px", "codec", "min_side_px", "val_fraction")
"""Config fields that all snapshots of a dataset share."""

AT_ONCE = 8
"""Small files read or written at the same time."""

Entry = dict[str, Any]
Reject = dict[str, str]
T = TypeVar("T")


class TooManyRemoved(DatasetError):
    """So many files are gone that the source itself may be at fault; nothing was removed, and nothing taken in."""

    exit_code = 5


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The snapshot that an ingest goes on from."""

    number: int
    entries: list[Entry]
    rejects: list[Reject]
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The files to read, cut into units; `listed` counts all files of the source."""

    source: str
    dataset: str
    group: str
    config: IngestConfig
    parent: Parent | None
    listed: int
    units: listing.Units
    removed: tuple[str, ...] = ()
    """uris of the parent's photos whose file is gone from the source, and that shall go too."""
    forgotten: tuple[str, ...] = ()
    """uris of the parent's rejects of which the same is true."""
    continues: str = ""
    """An unfinished run whose done units this one takes over (ingest_carry.py), because its source has changed since."""
    carried: tuple[int, ...] = ()
    """What units 0, 1, … of this plan are called there; those after them are to be read."""
    lost: tuple[str, ...] = ()
    """sha256 of the parent's shards that the next manifest shall not name; their photos are read again."""

    @property
    def photos(self) -> int:
        return sum(map(len, self.units))

    @functools.cached_property
    def run(self) -> str:
        """Name of the run: equal plans have equal names."""
        digest = hashlib.sha256(json.dumps(
            [FORMAT, snapshot.FORMAT, shards.FORMAT, shards.versions(), config_form.flat(self.config),
             self.group, self.source, self.parent.number if self.parent else None]).encode())
        for number, unit in enumerate(self.units):
            digest.update(json.dumps([number, *unit]).encode())
        if self.removed or self.forgotten:
            digest.update(json.dumps([self.removed, self.forgotten]).encode())
        if self.lost:
            digest.update(json.dumps(["lost", self.lost]).encode())
        return digest.hexdigest()[:16]

    def uri(self, *parts: str) -> str:
        """An address in the run's folder."""
        return storage.join(self.dataset, "runs", self.run, *parts)


# ---------------------------------------------------------------- before


def places(source: str, dataset: str) -> tuple[str, str]:
    """Both addresses, absolute. Raises ConfigError, StorageError or DatasetError where they cannot be what they are for."""
    require_dataset_address(dataset)
    source, dataset = storage.absolute(source), storage.absolute(dataset)
    if f"{dataset}/".startswith(f"{source}/"):
        raise ConfigError(f"dataset={dataset}: it lies inside the source {source}, whose files would then hold shards; "
                          "name a place outside")
    storage.require_root(dataset)
    storage.require_root(source)
    return source, dataset


def require_dataset_address(dataset: str) -> None:
    """Raise ConfigError for the address of one snapshot."""
    if snapshot.split_address(dataset)[1] is not None:
        raise ConfigError(f"{dataset}: it names one snapshot, which never changes; expected the dataset's address")


def make_plan(
    source: str, dataset: str, *, config: IngestConfig, group: str, remove_missing: bool = False,
    most_removed: float = MOST_REMOVED, lost: Collection[str] = (),
) -> Plan:
    """What to read from `source`, and, if asked, what to remove. Raises ConfigError, StorageError or DatasetError, all
    before any work; a listing with nothing in it is an error, never a reason to remove, and so is one (TooManyRemoved)
    that lacks more than the share `most_removed` of the photos that the dataset has from this source. `lost`: shards
    (sha256) that are not whole; those with photos of this source are to be replaced."""
    source, dataset = places(source, dataset)
    parent = read_parent(dataset, config)
    require_group(parent, source, group)
    listed = listing.in_order(storage.list_objects(source))
    if not listed:
        raise StorageError(f"{source}: no file there; expected a folder or prefix with photos; check the address")
    here = {info.uri for info in listed} if remove_missing else set()
    photos, rejects = ([row["uri"] for row in rows] for rows in (
        (alive(parent.entries), parent.rejects) if parent and remove_missing else ((), ())))
    removed = missing(photos, source, here)
    require_few_removed(removed, len(missing(photos, source, ())), source, dataset, most_removed)
    replaced = lost_here(parent, source, lost) if parent and lost else ()
    todo = unseen(listed, parent, config, source=source, removed=removed, lost=replaced)
    return Plan(source=source, dataset=dataset, group=group, config=config, parent=parent, listed=len(listed), lost=replaced,
                units=cut(todo, config), removed=removed, forgotten=missing(rejects, source, here))


def require_group(parent: Parent | None, source: str, group: str) -> None:
    """Raise ConfigError where the photos of this source are in the dataset under another label, which their rows keep."""
    for row in recorded_sources(parent.info) if parent else ():
        if row["source"] == source and (row["group"] or "") != group:
            raise ConfigError(f"group={group or 'none'}: the photos of {source} are in the dataset with the group "
                              f"{row['group'] or 'none'}; a source keeps its group; give that one, or ingest into another "
                              "dataset")


def lost_here(parent: Parent, source: str, lost: Collection[str]) -> tuple[str, ...]:
    """Those of the `lost` shards that hold photos of `source`."""
    return tuple(sorted(entry["sha256"] for entry in parent.entries if entry["sha256"] in lost
                        and missing((row["uri"] for row in alive([entry])), source, ())))


def missing(uris: Iterable[str], source: str, here: Collection[str]) -> tuple[str, ...]:
    """Those of `uris` that lie under `source` and are not `here`."""
    below = f"{source.rstrip('/')}/"
    return tuple(sorted({uri for uri in uris if uri.startswith(below) and uri not in here}))


def require_few_removed(removed: Collection[str], had: int, source: str, dataset: str, most: float) -> None:
    """Raise TooManyRemoved where more than the share `most` of the `had` photos from `source` would go."""
    if len(removed) > most * had:
        raise TooManyRemoved(
            f"{dataset}: the files of {len(removed)} of the {had} photos from {source} are gone, {len(removed) / had:.0%}; "
            f"expected {most:.0%} at most; nothing was removed: check the source, as {min(removed)}; if it is right, "
            f"run this once with --most-removed {-(-100 * len(removed) // had) / 100:g}")


def read_parent(dataset: str, config: IngestConfig) -> Parent | None:
    """The newest snapshot of `dataset`, None where there is none. Raises ConfigError where `config` does not fit it."""
    number = snapshot.newest_number(dataset)
    if number is None:
        return None
    table = snapshot.read_table(dataset, number)
    info = json.loads(table.schema.metadata[b"infd"])
    for name in SHARED_FIELDS:
        here, there = getattr(config, name), info["config"].get(name)
        if here != there:
            raise ConfigError(f"{name}={here}: snapshot {number} of {dataset} has {there}, and all snapshots of a "
                              f"dataset share it; give {there}, or name another dataset")
    where = storage.join(dataset, "runs", info["run"], "rejects.parquet") if info.get("run") else ""
    return Parent(number=number, entries=table.to_pylist(), info=info,
                  rejects=read_rows(where) if where and storage.exists(where) else [])


def unseen(
    listed: listing.Files, parent: Parent | None, config: IngestConfig, *, source: str, removed: Collection[str],
    lost: Collection[str] = (),
) -> listing.Files:
    """The listed files that the parent does not know in this version, those in its shards that are `lost`, and the twins
    of photos that go."""
    if parent is None:
        return listed
    kept = {row["uri"]: row for row in alive(entry for entry in parent.entries if entry["sha256"] not in lost)}
    recorded = [row["config"] for row in recorded_sources(parent.info) if row["source"] == source]
    same_limits = config_form.flat(config) in recorded
    now = {info.uri: listing.version(info) for info in listed}
    gone = set(removed)
    twins = {row["image_id"] for row in parent.rejects} - {""}
    stay = {row["image_id"] for uri, row in kept.items() if row["image_id"] in twins
            and now.get(uri, row["etag"]) == row["etag"] and uri not in gone}
    known = {(uri, row["etag"]) for uri, row in kept.items()}
    known |= {(row["uri"], row["etag"]) for row in parent.rejects
              if (row["reason"] == "duplicate" or same_limits) and row["reason"] not in PASSING
              and (row["reason"] != "duplicate" or row["image_id"] in stay)}
    return listed.where(lambda info: (info.uri, listing.version(info)) not in known)


def cut(files: Sequence[ObjectInfo], config: IngestConfig) -> listing.Units:
    """Consecutive files in units. Law: the cuts depend on the files and the config alone, not on the cluster."""
    most = min(config.unit_photos, max(LEAST_UNIT_PHOTOS, -(-len(files) // LEAST_UNITS)))
    starts: list[int] = []
    size = 0
    for number, info in enumerate(files):
        if not starts or number - starts[-1] >= most or size + info.size > config.unit_bytes:
            starts.append(number)
            size = 0
        size += info.size
    return listing.Units(files, starts)


def write_plan(plan: Plan) -> None:
    """Store plan.parquet; an equal run writes equal bytes."""
    about = {"source": plan.source, "group": plan.group, "config": config_form.flat(plan.config),
             "parent": plan.parent.number if plan.parent else None}
    starts, files = plan.units.starts, listing.table_of(plan.units.files)
    numbers = np.repeat(np.arange(len(starts), dtype=np.int32), np.diff([*starts, len(files)]))
    table = files.add_column(0, "unit", pa.array(numbers)).cast(PLAN)
    storage.put_atomic(plan.uri("plan.parquet"), parquet(table.replace_schema_metadata(
        {"infd": json.dumps(about, sort_keys=True)})))


def forget_units(plan: Plan, shards_at_fault: Collection[str]) -> int:
    """Make the units that wrote one of these shards (sha256) count as not done; how many. The next run repeats them."""
    forgotten = 0
    for number in sorted(done_units(plan.uri())):
        record = record_uri(plan.uri(), "done", number)
        if any(entry["sha256"] in shards_at_fault for entry in read_rows(record)):
            storage.delete(record)
            forgotten += 1
    return forgotten


def forget_passing(plan: Plan, outcome: "Outcome") -> None:
    """The same for units that hold a file with a PASSING reject: where no snapshot is made, the next run has this name."""
    again = {row["uri"] for row in outcome.new_rejects if row["reason"] in PASSING}
    if again:
        units = [number for number, unit in enumerate(plan.units) if any(info.uri in again for info in unit)]
        in_threads(lambda number: storage.delete(record_uri(plan.uri(), "done", number)), units)


def done_units(run_uri: str) -> set[int]:
    """Units of a run that are finished."""
    names = (info.uri.rpartition("/")[2] for info in storage.list_objects(storage.join(run_uri, "done")))
    return {int(name.removesuffix(".parquet")) for name in names}


def write_done(run_uri: str, number: int, entries: list[Entry], rejects: list[Reject]) -> None:
    """The end of a unit: its rejects, and its `done` record last."""
    storage.put_atomic(record_uri(run_uri, "rejects", number), table_bytes(rejects, REJECTS))
    storage.put_atomic(record_uri(run_uri, "done", number), table_bytes(entries, snapshot.ENTRY))


def record_uri(run_uri: str, kind: str, number: int) -> str:
    """Where a unit's "done" or "rejects" are."""
    return storage.join(run_uri, kind, f"{number:08d}.parquet")


# ---------------------------------------------------------------- after


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run makes of the dataset: entries of the new manifest, and all rejects."""

    entries: list[Entry]
    rejects: list[Reject]
    kept: int
    """Photos that are new."""
    new_rejects: list[Reject]

    def info(self, plan: Plan) -> dict[str, Any]:
        """The manifest's metadata: no time and no host."""
        return {"parent": plan.parent.number if plan.parent else None, "source": plan.source, "group": plan.group,
                "run": plan.run, "config": config_form.flat(plan.config), "config_sha256": config_form.identity(plan.config),
                "sources": sources(plan),
                "counts": {**snapshot.counts(self.entries), "rejected": tally(self.rejects)}}


def sources(plan: Plan) -> list[dict[str, Any]]:
    """Where the snapshot's photos are from: source, group, config of the newest ingest of each source, by source."""
    this = {"source": plan.source, "group": plan.group, "config": config_form.flat(plan.config)}
    before = recorded_sources(plan.parent.info) if plan.parent else []
    return sorted([*(row for row in before if row["source"] != plan.source), this], key=lambda row: row["source"])


def recorded_sources(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `sources` of a manifest's info; a snapshot that was not made from a source has none."""
    return info.get("sources") or ([{name: info.get(name) for name in ("source", "group", "config")}]
                                   if info.get("source") else [])


def assemble(plan: Plan) -> Outcome:
    """The parent's entries and the units' in plan order, without what was replaced and without duplicates."""
    fresh, rejects = ([row for rows in in_threads(functools.partial(read_record, plan.uri(), kind), range(len(plan.units)))
                       for row in rows] for kind in ("done", "rejects"))
    passing = {row["uri"] for row in rejects if row["reason"] in PASSING}
    planned = {info.uri for unit in plan.units for info in unit}
    gone = (planned - passing) | {*plan.removed}
    old = plan.parent.entries if plan.parent else []
    old = [dropping(entry, [r for r, uri in enumerate(entry["uris"]) if uri in gone]) for entry in old
           if entry["sha256"] not in plan.lost]
    first = {row["image_id"]: "" for row in alive(old)}  # whose photo is kept; "": the parent's
    for row in sorted(alive(fresh), key=lambda row: row["uri"].encode()):  # a plan that continues is not in this order
        first.setdefault(row["image_id"], row["uri"])
    kept = 0
    for i, entry in enumerate(fresh):
        rows = [r for r in range(entry["rows"]) if r not in entry["dropped"]]
        twice = [r for r in rows if first[entry["image_ids"][r]] != entry["uris"][r]]
        rejects += [reject(entry["uris"][r], entry["etags"][r], "duplicate", image_id=entry["image_ids"][r]) for r in twice]
        kept += len(rows) - len(twice)
        fresh[i] = dropping(entry, twice)
    again = planned | {*plan.forgotten}
    carried = [row for row in (plan.parent.rejects if plan.parent else []) if row["uri"] not in again]
    entries = [entry for entry in [*old, *fresh] if len(entry["dropped"]) < entry["rows"]]
    return Outcome(entries=entries, kept=kept, new_rejects=rejects,
                   rejects=sorted([*carried, *rejects], key=lambda row: row["uri"].encode()))


def alive(entries: Iterable[Entry]) -> Iterable[Entry]:
    """uri, etag and image_id of every photo that counts."""
    for entry in entries:
        gone = set(entry["dropped"])
        for r in range(entry["rows"]):
            if r not in gone:
                yield {"uri": entry["uris"][r], "etag": entry["etags"][r], "image_id": entry["image_ids"][r]}


def dropping(entry: Entry, rows: list[int]) -> Entry:
    """The entry with `rows` of its file dropped too."""
    return {**entry, "dropped": sorted({*entry["dropped"], *rows})} if rows else entry


def reject(uri: str, etag: str, reason: str, detail: str = "", image_id: str = "") -> Reject:
    """A row of REJECTS."""
    return {"uri": uri, "etag": etag, "reason": reason, "detail": detail, "image_id": image_id}


def tally(rejects: list[Reject]) -> dict[str, int]:
    """How many of each reason, the most frequent first."""
    reasons = [row["reason"] for row in rejects]
    return {reason: reasons.count(reason) for reason in sorted({*reasons}, key=lambda r: (-reasons.count(r), r))}


def require_photos(plan: Plan, outcome: Outcome) -> None:
    """Raise DatasetError where not one photo is left."""
    if not outcome.entries and plan.removed:
        raise DatasetError(f"{plan.dataset}: the files of {len(plan.removed)} photos are gone from {plan.source}, and without "
                           "them no photo would be left; expected at least one; nothing was removed: check the source, or "
                           "ingest it into another dataset")
    if not outcome.entries:
        why = ", ".join(f"{reason} {count}" for reason, count in tally(outcome.rejects).items())
        raise DatasetError(f"{plan.source}: none of {plan.listed} files became a photo ({why}); expected JPEG, PNG, WebP, "
                           f"TIFF, AVIF or HEIC of photographs; {plan.uri('rejects.parquet')} tells why each was left out; "
                           "check the source")


# ---------------------------------------------------------------- small tables


def table_bytes(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """A parquet file. Law: equal rows give equal bytes."""
    return parquet(pa.Table.from_pylist(rows, schema))


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_record(run_uri: str, kind: str, number: int) -> list[dict[str, Any]]:
    """The rows of a unit's "done" or "rejects"."""
    return read_rows(record_uri(run_uri, kind, number))


def read_rows(uri: str) -> list[dict[str, Any]]:
    """The rows of a parquet file."""
    try:
        return pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()
    except pa.ArrowException as error:
        raise DatasetError(f"{uri}: it is no parquet file; expected what an ingest wrote; delete it and run the ingest "
                           "again") from error


def in_threads(do: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
    """What `do` gives for each number, in their order, AT_ONCE at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(do, numbers))
