"""Training runs as their folders tell: state, step, best figure, where the checkpoints are. Needs neither MLflow nor Ray;
nothing is written."""

import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infd import checkpoint, storage
from infd.checkpoint import Checkpoint
from infd.data.snapshot import newest_number, split_address
from infd.errors import CheckpointError, InfdError, StorageError
from infd.lease import driver_uri
from infd.training.loop import Metrics
from pipelines.snapshots_text import table_text

logger = logging.getLogger(__name__)

POLL_S = 0.5
COLUMNS = ("run", "state", "step", "best", "preset", "snapshot")

State = Literal["running", "finished", "interrupted", "not begun"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run as its folder tells. `state`: running, its driver gives signs of life; else finished at its last step,
    interrupted before it, or not begun: it has neither a checkpoint nor a driver that died."""

    uri: str
    record: dict[str, Any]
    """run.json."""
    state: State
    steps: int
    checkpoints: list[int]
    """Steps of the complete checkpoints."""
    last: Checkpoint | None
    best: Checkpoint | None
    preview: str
    """Address of the newest preview; empty: none yet."""
    mlflow_run: str
    """Empty: not tracked."""

    @property
    def step(self) -> int:
        return self.last.step if self.last else 0


# ---------------------------------------------------------------- reading


def found(folder: str) -> list[str]:
    """Runs of a dataset (below its training/) or of a folder, by name. Raises CheckpointError where there is
    none, in what is no dataset either."""
    root = split_address(storage.absolute(folder))[0]
    for place in (storage.join(root, "training"), root):
        runs = [storage.parent(info.uri) for info in storage.list_objects(place) if info.uri.endswith("/run.json")]
        if runs:
            return sorted(run for run in runs if not any(run.startswith(f"{other}/") for other in runs))
    if newest_number(root) is not None:
        return []
    raise CheckpointError(f"{folder}: no run.json below it; expected a dataset or a folder with training runs; "
                          "jobs/train_ae.py logs the run's address when it begins")


def facts(run: str, *, alive: bool) -> Facts:
    """All that the folder `run` tells. Raises CheckpointError where it is no run."""
    record = record_of(run)
    last, whole, step = checkpoint.newest(run), checkpoint.steps(run), checkpoint.pointed(run, "best")
    best = checkpoint.load(checkpoint.step_uri(run, step)) if step in whole else None
    steps = int((last.meta if last else record)["config"]["loop.steps"])       # a run that went on may have more than at first
    if alive:
        state: State = "running"
    elif last is not None and last.step >= steps:
        state = "finished"
    else:
        state = "interrupted" if last or storage.exists(driver_uri(run)) else "not begun"
    tracked = storage.join(run, "mlflow.json")
    previews = sorted(info.uri for info in storage.list_objects(storage.join(run, "previews")))
    return Facts(uri=run, record=record, state=state, steps=steps, checkpoints=whole, last=last, best=best,
                 preview=previews[-1] if previews else "",
                 mlflow_run=json.loads(storage.read_bytes(tracked))["run_id"] if storage.exists(tracked) else "")


def record_of(run: str) -> dict[str, Any]:
    """run.json of a run. Raises CheckpointError where there is none, or one of something else."""
    uri = storage.join(run, "run.json")
    if not storage.exists(uri):
        raise CheckpointError(f"run {run}: no run.json; expected the folder of a training run; "
                              "jobs/runs.py list DATASET names them")
    try:
        record = json.loads(storage.read_bytes(uri))
        return ({name: record[name] for name in ("preset", "config", "snapshot")}
                | {name: record.get(name) for name in ("start", "latents")})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"run {run}: run.json is not what jobs/train_ae.py writes; expected preset, config and snapshot; "
                              "restore it from a copy") from error


def living(runs: Iterable[str], *, watch_s: float) -> set[str]:
    """Those whose driver gives a sign of life within watch_s; at once where none has a driver."""
    before = {run: seen for run in runs if (seen := lease_seen(run))}
    alive: set[str] = set()
    end = time.monotonic() + watch_s
    if before:
        logger.info("watching the drivers of %d run%s for up to %.0f s", len(before), "s" * (len(before) > 1), watch_s)
    while before.keys() - alive and time.monotonic() < end:
        time.sleep(POLL_S)
        now = {run: lease_seen(run) for run in before.keys() - alive}
        alive |= {run for run, seen in now.items() if seen not in ("", before[run])}
        before = {run: seen for run, seen in before.items() if now.get(run, seen)}    # a lease given back: its driver ended
    return alive


def lease_seen(run: str) -> str:
    """The etag of a run's lease, which changes with every sign of life; empty where nobody holds it."""
    try:
        return storage.read_with_etag(driver_uri(run))[1] if storage.exists(driver_uri(run)) else ""
    except StorageError:                                           # given back between the two questions
        return ""


# ---------------------------------------------------------------- text


def list_text(folder: str, *, watch_s: float) -> str:
    """A line for each run; one that cannot be read is named in the log, with why."""
    runs = found(folder)
    if not runs:
        return f"{folder}: no training runs yet; jobs/train_ae.py begins one"
    alive = living(runs, watch_s=watch_s)
    root = common_folder(runs)
    rows = []
    for run in runs:
        name = run.removeprefix(f"{root}/")
        try:
            rows.append((name, *cells(facts(run, alive=run in alive))))
        except InfdError as error:
            logger.warning("%s", error)
            rows.append((name, "unreadable", *["-"] * (len(COLUMNS) - 2)))
    return f"{root}\n{table_text([COLUMNS, *rows], left=(0, 1, 4, 5))}"


def cells(run: Facts) -> tuple[str, ...]:
    value = best_value(run)
    best = f"{best_by(run)} {value:.4f} at {run.best.step}" if run.best and value is not None else "-"
    return run.state, f"{run.step}/{run.steps}", best, run.record["preset"], run.record["snapshot"].rsplit("/", 1)[-1]


def show_text(run: str, *, watch_s: float) -> str:
    """All of one run, a fact a line, then validation by side r of the best checkpoint."""
    run = storage.absolute(run)
    record_of(run)
    seen = facts(run, alive=bool(living([run], watch_s=watch_s)))
    lines = [("run", run), ("state", state_text(seen)), ("step", f"{seen.step} of {seen.steps}"),
             ("preset", seen.record["preset"]), ("snapshot", seen.record["snapshot"]), ("started from", start_text(seen)),
             ("best", best_text(seen)), ("last", figures_text(seen.last, "train/")),
             ("checkpoints", checkpoints_text(seen)), ("preview", seen.preview or "none yet"),
             ("MLflow run", seen.mlflow_run or "not tracked")]
    text = "\n".join(f"{name:<14}{value}" for name, value in lines)
    table = by_side(seen.best.meta["metrics"]) if seen.best else []
    return f"{text}\n\nvalidation of the best by side r, pixels\n{table_text(table)}" if table else text


def state_text(run: Facts) -> str:
    why = {"running": "its driver gives signs of life", "finished": "at its last step",
           "interrupted": "short of its last step, and no driver; the same command goes on",
           "not begun": "no checkpoint yet, and no driver"}
    return f"{run.state}: {why[run.state]}"


def start_text(run: Facts) -> str:
    start = run.record["start"]
    if start is None:
        return f"random weights, seed {run.record['config']['loop.seed']}"
    return f"{start['checkpoint']}, step {start['step']}"


def best_text(run: Facts) -> str:
    if run.best is None:
        return "none yet"
    metrics = run.best.meta["metrics"]
    if best_value(run) is None:
        return f"step {run.best.step}: not judged; the dataset has no val photos"
    judged = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("eval/"))
    validated = figures_text(run.best, "val/") if best_by(run) == "val/loss" else f"{judged}; chosen by {best_by(run)}"
    return f"step {run.best.step}: {validated}"


def best_by(run: Facts) -> str:
    """The metric that chose the best checkpoint."""
    return run.best.meta.get("best_by", "val/loss") if run.best else "val/loss"


def best_value(run: Facts) -> float | None:
    return run.best.meta["metrics"].get(best_by(run)) if run.best else None


def figures_text(found: Checkpoint | None, head: str) -> str:
    """`loss 0.2647, psnr 18.35` of a checkpoint's metrics under `head`, over all r."""
    if found is None:
        return "none yet"
    shown = (f"{head}{name}" for name in ("loss", "l1", "lpips", "psnr"))
    return ", ".join(f"{name} {found.meta['metrics'][name]:.4g}" for name in shown if name in found.meta["metrics"])


def checkpoints_text(run: Facts) -> str:
    if not run.checkpoints:
        return "none yet"
    marks = {run.last and run.last.step: ["last"]}
    if run.best:
        marks.setdefault(run.best.step, []).append("best")
    steps = (f"{step} ({', '.join(marks[step])})" if step in marks else str(step) for step in run.checkpoints)
    return f"{storage.join(run.uri, 'checkpoints')}: steps {', '.join(steps)}"


def by_side(metrics: Metrics) -> list[Sequence[str]]:
    """A heading and a row for each octave of r, from metrics as `val/loss_r_to_128`; empty without any."""
    values: dict[int, dict[str, float]] = {}
    for name, value in metrics.items():
        if match := re.fullmatch(r"(val/\w+)_r_to_(\d+)", name):
            values.setdefault(int(match[2]), {})[match[1]] = value
    names = [name for name in ("val/loss", "val/l1", "val/lpips", "val/psnr") if any(name in row for row in values.values())]
    rows = [[f"r to {end}", *(f"{values[end][name]:.4g}" if name in values[end] else "-" for name in names)]
            for end in sorted(values)]
    return [["", *names], *rows] if rows else []


def common_folder(runs: Sequence[str]) -> str:
    """The folder below which all runs lie."""
    root = storage.parent(runs[0])
    while not all(run.startswith(f"{root}/") for run in runs):
        root = storage.parent(root)
    return root
