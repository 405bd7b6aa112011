"""Photos of a bucket or folder → patch shards → a committed snapshot, on Ray Data.

plan (pipelines/ingest_plan.py) → a task a unit: fetch, decode, pyramid, shards, rejects, then its `done` record →
the driver assembles the manifest in plan order and commits it. Any part may be killed and the command run again:
units that are done are not repeated, a unit that is repeated writes the same bytes under the same names, and the
snapshot is the same, byte for byte; where the source changed meanwhile, see ingest_plan.py. A task holds one decoded photo
and one record batch of tiles at a time.
"""

import functools
import json
import logging
import platform
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from infd import config_form, errors, lease, storage
from infd.config import IngestConfig
from infd.data import shards, snapshot
from infd.errors import InfdError, PhotoError, PreconditionFailed
from infd.storage import ObjectInfo
from pipelines import cluster, ingest_attempts, ingest_carry, ingest_plan, listing
from pipelines.ingest_plan import Outcome, Plan
from pipelines.ingest_report import Progress, summary

logger = logging.getLogger(__name__)

SMALL_CLUSTER_CPUS = 4
"""Below this many CPUs a task claims half a CPU, so that other work of Ray's always finds some, and one task more runs than
there are CPUs, so that none waits for Ray to send the next."""

LEASE = "writer.lease"
"""In DATASET/runs: the sign of life of the one ingest or refresh that is at work."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """`snapshot_uri` is the newest snapshot; `is_new` tells whether this ingest made it; `summary` is for people."""

    snapshot_uri: str
    is_new: bool
    summary: str
    plan: Plan
    outcome: Outcome | None
    """None where the source had nothing that is new."""


def accept_all(plan: Plan, outcome: Outcome) -> None:
    """What a plain ingest asks of a snapshot before it is committed: nothing."""


def alone(dataset: str, *, what: str, patience_s: float = lease.PATIENCE_S) -> AbstractContextManager[None]:
    """Inside the block nobody else ingests into `dataset` or refreshes it, if all ask so. Raises LeaseHeld.

    Not part of `ingest`, because a refresh is alone for all its ingests; two that are not alone do no harm, only work twice.
    """
    return lease.held(storage.join(storage.absolute(dataset), "runs", LEASE), what=f"{what} {dataset}", patience_s=patience_s)


def ingest(
    source: str, dataset: str, *, config: IngestConfig, group: str = "", remove_missing: bool = False,
    most_removed: float = ingest_plan.MOST_REMOVED, lost: Collection[str] = (),
    accept: Callable[[Plan, Outcome], None] = accept_all,
) -> Ingested:
    """Bring the photos under `source` into the dataset at `dataset`.

    `remove_missing`: photos of this source whose file is gone leave the dataset, if they are no more than the share
    `most_removed` of its photos. `lost`: shards (sha256) that are not whole: the snapshot does not name them, and what they
    had of this source is read again. `accept` sees what would be committed,
    its shards in place, and raises an InfdError to refuse it; then no snapshot is made.
    Law: however often it is interrupted, the snapshot is the same, while the source lists the same. Raises InfdError: source
    empty, bucket missing, no photo left, another ingest was faster, a config that does not fit the dataset.
    """
    began = time.monotonic()
    plan = ingest_carry.continued(ingest_plan.make_plan(
        source, dataset, config=config, group=group, remove_missing=remove_missing, most_removed=most_removed, lost=lost))
    if plan.parent:
        snapshot.advance_latest(plan.dataset, plan.parent.number)  # whoever committed it may have died before
    if not (plan.units or plan.removed or plan.lost):
        return nothing_new(plan)
    ingest_plan.write_plan(plan)
    ingest_carry.take_over(plan)
    done = ingest_plan.done_units(plan.uri())
    tasks = [task_of(number, unit) for number, unit in enumerate(plan.units) if number not in done]
    logger.info("run %s: %d of %d files to read, in %d units, %d of them done already", plan.run, plan.photos,
                plan.listed, len(plan.units), len(done))
    if plan.continues:
        logger.info("run %s: %s has changed since run %s; %d of its done units are taken over", plan.run, plan.source,
                    plan.continues, len(plan.carried))
    if tasks:
        run_on_ray(plan, tasks)
    outcome = ingest_plan.assemble(plan)
    storage.put_atomic(plan.uri("rejects.parquet"), ingest_plan.table_bytes(outcome.rejects, ingest_plan.REJECTS))
    same = plan.parent is not None and outcome.entries == plan.parent.entries
    if same or not outcome.entries:
        ingest_plan.forget_passing(plan, outcome)
    ingest_plan.require_photos(plan, outcome)
    if same:
        if plan.lost:  # they were written again as they had been
            accept(plan, outcome)
        ingest_carry.finish(plan)
        return nothing_new(plan, outcome)
    accept(plan, outcome)
    uri = snapshot.commit(plan.dataset, (plan.parent.number if plan.parent else 0) + 1,
                          snapshot.manifest_bytes(outcome.entries, outcome.info(plan)))
    took = time.monotonic() - began
    read_now = sum(len(task["uris"]) for task in tasks)
    write_record(plan, uri, read_now, took)
    ingest_carry.finish(plan)
    return Ingested(snapshot_uri=uri, is_new=True, plan=plan, outcome=outcome,
                    summary=summary(plan, outcome, uri, read=read_now, seconds=took))


def nothing_new(plan: Plan, outcome: Outcome | None = None) -> Ingested:
    """The answer where the newest snapshot has all that the source has."""
    number = plan.parent.number if plan.parent else 0
    lost = f"; {len(outcome.new_rejects)} rejected, see {plan.uri('rejects.parquet')}" if outcome else ""
    uri = f"{plan.dataset}@{number}"
    return Ingested(snapshot_uri=uri, is_new=False, plan=plan, outcome=outcome, summary=f"nothing new: {uri} has all "
                    f"photos of {plan.source} ({plan.listed} files{lost}); no snapshot made")


def write_record(plan: Plan, uri: str, read_now: int, seconds: float) -> None:
    """What the manifest must not hold, because it differs between equal runs."""
    record = {"snapshot": uri, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": seconds,
              "files_read": read_now, "host": platform.node(), "python": platform.python_version()}
    storage.put_atomic(plan.uri("finished.json"), json.dumps(record, indent=1, sort_keys=True).encode())


# ---------------------------------------------------------------- a unit


def task_of(number: int, unit: list[ObjectInfo]) -> dict[str, Any]:
    """A unit as a row of Ray Data."""
    return {"unit": number, "uris": [info.uri for info in unit], "etags": [info.etag for info in unit],
            "sizes": [info.size for info in unit]}


def run_unit(
    task: dict[str, Any], *, run_uri: str, dataset: str, config: dict[str, Any], group: str, session: str = "",
) -> dict[str, Any]:
    """Read the files of one unit, write its shards, its rejects, and its `done` record last; a few figures.

    `session`: of the driver that tries again where this process dies (ingest_attempts.py); empty: there is none.
    Law: the same task writes the same bytes, wherever and however often it runs.
    """
    settings = config_form.unflat(IngestConfig, config)
    files = [ObjectInfo(str(uri), str(etag), int(size))
             for uri, etag, size in zip(task["uris"], task["etags"], task["sizes"], strict=True)]
    rejects: list[ingest_plan.Reject] = []
    attempt = ingest_attempts.begin(run_uri, int(task["unit"]), session)
    entries = snapshot.write_shards(photo_rows(files, rejects, settings, group, before=attempt.at), dataset, settings)
    ingest_plan.write_done(run_uri, int(task["unit"]), entries, rejects)
    attempt.finish()
    return {"unit": int(task["unit"]), "files": len(files), "rejected": len(rejects),
            "bytes": sum(entry["bytes"] for entry in entries)}


def photo_rows(
    files: list[ObjectInfo], rejects: list[ingest_plan.Reject], config: IngestConfig, group: str,
    before: Callable[[str], None] = lambda uri: None,
) -> Iterator[dict[str, Any]]:
    """A row for each file that is a photo; one after the other, so that one is in memory. The others → `rejects`.

    `before` is told the uri of each file before it is read, and may raise PhotoError."""
    for info in files:
        etag = listing.version(info)
        try:
            before(info.uri)
            yield shards.photo_row(info.uri, etag, read_source(info, config), config=config, group=group)
        except PhotoError as error:
            rejects.append(ingest_plan.reject(info.uri, etag, error.reason, error.detail))


def read_source(info: ObjectInfo, config: IngestConfig) -> bytes:
    """The bytes of a planned file. Raises PhotoError for what concerns this file alone, else StorageError."""
    if info.size > config.max_bytes:
        raise PhotoError("too_many_bytes", f"{info.size} bytes, more than {config.max_bytes}")
    try:
        return storage.read_object(info)
    except PreconditionFailed as error:
        raise PhotoError("changed") from error
    except storage.Unreadable as error:
        raise PhotoError("unreadable") from error


def guarded_unit(task: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """`run_unit`, with an InfdError as a row: Ray keeps only the text of an error's cause, not the error."""
    try:
        return {**run_unit(task, **settings), "kind": "", "error": ""}
    except InfdError as error:
        return {"unit": int(task["unit"]), "files": 0, "rejected": 0, "bytes": 0, "kind": type(error).__name__,
                "error": str(error)}


# ---------------------------------------------------------------- Ray Data


def run_on_ray(plan: Plan, tasks: list[dict[str, Any]]) -> None:
    """Run the units on the cluster, with progress. Raises the InfdError of a unit that failed."""
    with cluster.connect():
        import ray
        from ray.data import TaskPoolStrategy

        quiet()
        total = cluster.cpus_now()
        small = not cluster.autoscales() and total < SMALL_CLUSTER_CPUS
        cpus = 0.5 if small else 1.0
        cluster.require_cpus(cpus)
        unit = functools.partial(guarded_unit, run_uri=plan.uri(), dataset=plan.dataset,
                                 config=config_form.flat(plan.config), group=plan.group, session=uuid.uuid4().hex)
        rows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
            unit, num_cpus=cpus, compute=TaskPoolStrategy(size=max(1, int(total)) + 1 if small else None))
        already = plan.photos - sum(len(task["uris"]) for task in tasks)
        with Progress(total=plan.photos, done=already, resources=ray.available_resources) as progress:
            for row in rows.iter_rows():
                if row["kind"]:
                    raise getattr(errors, row["kind"], errors.StorageError)(row["error"])
                progress.add(files=row["files"], rejected=row["rejected"], size=row["bytes"])


def quiet() -> None:
    """Ray Data's own bars and notices off: ours go to stderr, and stdout is for the result."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off
