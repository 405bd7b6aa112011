"""A training run: what it is (run.json), how it begins or goes on, and what it leaves behind.

    RUN/run.json                stage, preset, config, snapshot: written once, by whoever comes first
    RUN/checkpoints/…           infd/checkpoint.py
    RUN/previews/step-….png     photographs beside their renders, or samples
    RUN/failures/step-….npz     the batch of a loss that was not finite

What a stage adds is its `Work` (autoencoder_run.py, diffusion_run.py). Everything here runs on each rank; rank 0 alone
writes.
"""

import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from math import inf, isnan, nan
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from infd import checkpoint, storage
from infd.checkpoint import Checkpoint
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LoopConfig, require
from infd.config_form import departures, differing, digest, flat, identity, unflat
from infd.data.order import slots_of
from infd.data.snapshot import newest_number, open_dataset, split_address
from infd.errors import CheckpointError, ConfigError, InfdError, PreconditionFailed, StorageError, TrainingError
from infd.generation.load import autoencoder_config, denoiser_config
from infd.training import loop
from infd.training.alarms import Alarm
from infd.training.evaluation import Evaluation
from infd.training.loop import Metrics
from infd.training.world import World

logger = logging.getLogger(__name__)

SAVE_TRIES, SAVE_WAIT_S = 4, 15
"""Of a checkpoint, beyond what a store's client retries by itself: a full disk that someone clears, a store that restarts."""
STAGES: dict[str, type[AutoencoderTrainingConfig] | type[DiffusionTrainingConfig]] = {
    "autoencoder": AutoencoderTrainingConfig, "latent_diffusion": DiffusionTrainingConfig}
"""What is trained, by the names that run.json and checkpoints have for it."""

TrainingConfig = AutoencoderTrainingConfig | DiffusionTrainingConfig
ConfigT = TypeVar("ConfigT", bound=TrainingConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[ConfigT]):
    """A run as run.json records it; `snapshot` is pinned, so that the order of samples never changes."""

    uri: str
    preset: str
    config: ConfigT
    snapshot: str
    start: dict[str, Any] | None = None
    """The checkpoint whose weights it starts from, as `starting` tells; None: from the seed."""
    tracking_id: str | None = None
    """Of the MLflow run, where it is tracked; goes into every checkpoint."""
    latents: dict[str, str] | None = None
    """Stage two: `address` of the latents and `sha256` of their manifest."""

    @property
    def stage(self) -> str:
        return stage_of(self.config)

    def payload(self) -> dict[str, Any]:
        """As plain values, for another process."""
        return {"uri": self.uri, "preset": self.preset, "stage": self.stage, "config": flat(self.config),
                "snapshot": self.snapshot, "start": self.start, "tracking_id": self.tracking_id, "latents": self.latents}

    @classmethod
    def of(cls, payload: dict[str, Any]) -> "Run[TrainingConfig]":
        """From `payload`."""
        told = {name: payload[name] for name in ("uri", "preset", "snapshot", "start", "tracking_id", "latents")}
        return Run(config=unflat(STAGES[payload["stage"]], payload["config"]), **told)


def stage_of(config: TrainingConfig) -> str:
    """What a config trains."""
    return next(name for name, kind in STAGES.items() if isinstance(config, kind))


class Trainable(loop.Stage, Protocol):
    """A stage that a run can keep."""

    def finite(self) -> bool: ...

    def model_state(self) -> dict[str, Tensor]: ...

    def train_state(self) -> dict[str, Tensor]: ...

    def load_state(self, model: dict[str, Tensor], train_state: dict[str, Tensor]) -> None: ...


class Work(Protocol):
    """What a stage adds to a run."""

    @property
    def stage(self) -> Trainable: ...

    def sheet(self) -> Image.Image:
        """A preview, of the same few things each time."""
        ...

    def keep(self, step: int, address: str) -> list[str]:
        """Write the global batch of `step` as an .npz; the addresses of its photographs, or their names."""
        ...

    def alarms(self, step: int, metrics: Metrics) -> list[Alarm]: ...

    def model_beside(self) -> dict[str, Tensor]:
        """Tensors of other networks that a checkpoint holds too, so that it is of use alone."""
        ...

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is whole: write what belongs beside it."""
        ...

    @property
    def evaluation(self) -> Evaluation | None:
        """Figures on val photos, where some are made."""
        ...

    def facts(self) -> dict[str, Any]:
        """Of a checkpoint's meta.json: `weights`, the networks of others that it learned from, and more."""
        ...


class Observer(Protocol):
    """Who is told of progress on rank 0 (a terminal, MLflow); it never stops training."""

    def log(self, step: int, metrics: Metrics) -> None: ...

    def picture(self, step: int, name: str, image: Image.Image) -> None: ...

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None: ...

    def alarm(self, step: int, alarm: Alarm) -> None: ...


def default_run(dataset: str, preset: str, config: TrainingConfig, start_from: str = "", latents: str = "") -> str:
    """DATASET/training/PRESET-HASH, the hash being that of the fields that change numbers and are not at their default; and
    of the latents' address. Stage two has ldm- before it."""
    told = departures(config) | ({"start_from": storage.absolute(start_from)} if start_from else {})
    told |= {"latents": storage.absolute(latents)} if latents else {}
    kind = "ldm-" if isinstance(config, DiffusionTrainingConfig) else ""
    return storage.join(split_address(dataset)[0], "training", f"{kind}{preset}-{digest(told)[:8]}")


def open_run(uri: str, *, preset: str, config: ConfigT, dataset: str, start_from: str = "",
             latents: dict[str, str] | None = None) -> Run[ConfigT]:
    """Begin the run at `uri`, or go on with the one that is there.

    A run that is there keeps its snapshot, its latents and what it started from; its config may differ only in operational
    fields.
    `start_from`: a checkpoint for the weights of the first step. Raises CheckpointError naming what differs, and
    ConfigError where parts are frozen that start from nothing.
    """
    uri, dataset = storage.absolute(uri), storage.absolute(dataset)
    if isinstance(config, AutoencoderTrainingConfig) and config.freeze and not start_from:
        raise ConfigError(f"freeze={' '.join(config.freeze)}: they would keep random weights; give --start-from CHECKPOINT")
    record = storage.join(uri, "run.json")
    if not storage.exists(record):
        snapshot = open_dataset(dataset).snapshot_uri
        content = {"stage": stage_of(config), "preset": preset, "config": flat(config), "identity": identity(config),
                   "snapshot": snapshot, "start": starting(storage.absolute(start_from), config) if start_from else None,
                   "latents": latents}
        try:
            storage.put_if_absent(record, json.dumps(content, indent=1, sort_keys=True).encode())
        except PreconditionFailed:
            logger.info("run %s: begun by another process at the same time; going on with it", uri)
    found = json.loads(storage.read_bytes(record))
    if (there := found.get("stage", "autoencoder")) != stage_of(config):
        raise CheckpointError(f"run {uri}: it trains {there}, not {stage_of(config)}; name another --run")
    before = unflat(STAGES[there], found["config"])
    if names := differing(before, config):
        old, new = flat(before), flat(config)
        changes = ", ".join(f"{name} was {old.get(name)} and is {new.get(name)}" for name in names)
        raise CheckpointError(f"run {uri}: its config differs ({changes}); a run goes on with its own config; "
                              "name another --run, or take the old values")
    if dataset.rstrip("/") not in (found["snapshot"], found["snapshot"].rsplit("@", 1)[0]):
        raise CheckpointError(f"run {uri}: it reads {found['snapshot']}, not {dataset}; name another --run")
    if found.get("latents") != latents:
        raise CheckpointError(f"run {uri}: it reads the latents {found.get('latents')}, not {latents}; latents that were made "
                              "again are others; name another --run")
    start = found.get("start")
    if (start or {}).get("address", "") != (storage.absolute(start_from) if start_from else ""):
        raise CheckpointError(f"run {uri}: it started from {start['address'] if start else 'random weights'}, not from "
                              f"{start_from or 'random weights'}; name another --run, or say what it started from")
    warn_of_newer(uri, dataset, found["snapshot"])
    return Run(uri, found["preset"], config, found["snapshot"], start, latents=latents)


def starting(address: str, config: TrainingConfig) -> dict[str, Any]:
    """What run.json keeps of the checkpoint that a run starts from. Raises CheckpointError where its model is another."""
    found = checkpoint.load(address)
    there = autoencoder_config(found) if isinstance(config, AutoencoderTrainingConfig) else denoiser_config(found)
    if names := differing(there, config.model):
        old, new = flat(there), flat(config.model)
        changes = ", ".join(f"model.{name} is {old[name]} there and {new[name]} here" for name in names)
        raise CheckpointError(f"checkpoint {found.uri}: its model is another ({changes}); set these fields as it has them")
    return {"address": address, "checkpoint": found.uri, "step": found.step,
            "sha256": found.files[checkpoint.MODEL]["sha256"], "snapshot": found.meta.get("snapshot"),
            "origin": found.meta.get("origin", {}), "weights": found.meta.get("weights", {})}


def starting_weights(run: Run[TrainingConfig]) -> dict[str, Tensor] | None:
    """Tensors of the checkpoint that the run starts from, by network; None where it starts from the seed."""
    if run.start is None:
        return None
    found = checkpoint.load(run.start["checkpoint"])
    if (sha256 := found.files[checkpoint.MODEL]["sha256"]) != run.start["sha256"]:
        raise CheckpointError(f"checkpoint {found.uri}: its weights have sha256 {sha256[:12]}…; run {run.uri} began with "
                              f"{run.start['sha256'][:12]}…; begin another --run")
    logger.info("run %s: starting from the weights of %s", run.uri, found.uri)
    return found.model()


def warn_of_newer(uri: str, dataset: str, pinned: str) -> None:
    """Say so where the dataset has grown since the run began: the run does not see it."""
    root, asked = split_address(dataset)
    if asked is None and (newest := newest_number(root)) is not None and pinned != f"{root}@{newest}":
        logger.warning("run %s: it goes on with %s; the dataset is at @%d by now; to train on that, begin another --run",
                       uri, pinned, newest)


def check_batch(loop: LoopConfig, workers: int) -> None:
    """Raise ConfigError unless every worker owns the same number of slots."""
    slots_of(rank=0, world=workers, batch=loop.batch)
    share, parts = loop.batch // workers, loop.accumulate
    require(share % parts == 0, "loop.accumulate", parts, f"must divide a worker's share of the batch, {share}")


def resume(run: Run[TrainingConfig], stage: Trainable, found: Checkpoint | None) -> tuple[int, Metrics]:
    """Load the newest checkpoint of the run into `stage`; (its step, its metrics), or (0, {})."""
    if found is None:
        return 0, {}
    stage.load_state(found.model(), found.train_state())
    logger.info("run %s: going on from step %d", run.uri, found.step)
    return found.step, found.meta["metrics"]


def carry_on(run: Run[TrainingConfig], work: Work, batches: loop.Batches, start: int, *, world: World, observer: Observer,
             wished: Callable[[], bool]) -> Metrics:
    """Train from step `start` to the last; the last metrics. Raises Interrupted, with a checkpoint saved."""
    hooks = RunHooks(run, work, world, observer)
    loop.train(work.stage, batches, run.config.loop, hooks, world=world, start=start, wished=wished)
    return hooks.metrics


def persistent(write: Callable[[], None], *, what: str) -> None:
    """Call `write`, which may be repeated, until the store takes it; after SAVE_TRIES its StorageError stands."""
    for left in reversed(range(SAVE_TRIES)):
        try:
            return write()
        except StorageError as error:
            if not left:
                raise StorageError(
                    f"{what}: not written in {SAVE_TRIES} tries; the one before is whole; make room, or wait for the store, "
                    f"then run the same command again ({error})") from error
            logger.warning("%s: %s; tried again in %d s", what, error, SAVE_WAIT_S)
            time.sleep(SAVE_WAIT_S)


class RunHooks:
    """What a run writes while it trains."""

    def __init__(self, run: Run[TrainingConfig], work: Work, world: World, observer: Observer) -> None:
        self.run, self.work, self.world, self.observer = run, work, world, observer
        self.metrics: Metrics = {}
        self.best = self._best_score()

    def log(self, step: int, metrics: Metrics) -> None:
        self.metrics = self.metrics | metrics
        if self.world.rank == 0:
            self.observer.log(step, metrics)
            for alarm in self.work.alarms(step, metrics):
                self.observer.alarm(step, alarm)

    def validated(self, step: int, metrics: Metrics) -> None:
        self.metrics = self.metrics | metrics
        if self.world.rank == 0 and metrics:
            self.observer.log(step, metrics)

    def save(self, step: int, metrics: Metrics) -> None:
        """Write the checkpoint of `step`, judge it where that is due, let `best` (where it is) and `last` mean it, then remove
        old ones.

        A store that does not take a write is tried SAVE_TRIES times; then StorageError, and the checkpoint before is whole.
        """
        if not self.work.stage.finite():                                # alike on all ranks, so all of them stop
            self.not_finite(step)
        uri, what = checkpoint.step_uri(self.run.uri, step), f"run {self.run.uri}: the checkpoint of step {step}"
        due = self._evaluation_due(step)
        if self.world.rank == 0:
            self._write(uri, step, metrics, what=what)
            if due:                                                     # an evaluation takes long: nothing is lost in it
                persistent(lambda: checkpoint.point(self.run.uri, "last", step), what=what)
        figures = self._evaluated(step) if due else {}                  # on all ranks
        if self.world.rank != 0:
            return
        if figures:
            persistent(lambda: checkpoint.judged(uri, figures), what=what)
        score, last = self._score(step, metrics | figures, flat(self.run.config)), step == self.run.config.loop.steps
        if score < self.best or score == -inf or (last and self.best == inf):
            self.best = score
            persistent(lambda: checkpoint.point(self.run.uri, "best", step), what=what)
        persistent(lambda: checkpoint.point(self.run.uri, "last", step), what=what)
        try:
            checkpoint.prune(self.run.uri, keep_every=self.run.config.loop.keep_every)
        except StorageError as error:
            logger.warning("step %d: old checkpoints are not removed: %s", step, error)
        self.observer.checkpointed(step, uri, metrics | figures)

    def _write(self, uri: str, step: int, metrics: Metrics, *, what: str) -> None:
        stage = self.work.stage
        model, state = stage.model_state() | self.work.model_beside(), stage.train_state()
        meta = self._meta(step, metrics)
        persistent(lambda: checkpoint.save(uri, model=model, train_state=state, meta=meta), what=what)
        persistent(lambda: self.work.saved(step), what=what)

    def preview(self, step: int) -> None:
        """A sheet of the same few things each time. It is not worth a run: what goes wrong is a warning."""
        if self.world.rank != 0:
            return
        try:
            page = self.work.sheet()
            buffer = io.BytesIO()
            page.save(buffer, "PNG")
            storage.put_atomic(storage.join(self.run.uri, "previews", f"step-{step:08d}.png"), buffer.getvalue())
        except (InfdError, OSError, torch.OutOfMemoryError) as error:
            logger.warning("step %d: no preview: %s", step, error)
            return
        self.observer.picture(step, "preview", page)

    def not_finite(self, step: int) -> None:
        """Rank 0 saves the batch of `step`, that of all ranks; all raise TrainingError with its photographs' addresses."""
        address = storage.join(self.run.uri, "failures", f"step-{step:08d}.npz")
        if self.world.rank != 0:
            raise TrainingError(f"step {step}: a loss or a weight is not finite; rank 0 saves the batch as {address}")
        try:
            uris = self.work.keep(step, address)
        except (InfdError, OSError) as error:
            logger.warning("step %d: its batch could not be saved: %s", step, error)
            address, uris = "nowhere", []
        raise TrainingError(f"step {step}: a loss or a weight is not finite; the batch was saved as {address} "
                            f"(photos {', '.join(uris)}); look at these photos, or begin another --run with --start-from "
                            f"{self.run.uri}/checkpoints/last and a lower --optimizer.lr, or --loop.precision float32")

    def _evaluation_due(self, step: int) -> bool:
        evaluation = self.work.evaluation
        return evaluation is not None and (step % evaluation.every == 0 or step == self.run.config.loop.steps)

    def _evaluated(self, step: int) -> Metrics:
        """Figures of the weights. They are not worth a run: what goes wrong, alike on all ranks, is a warning."""
        assert self.work.evaluation is not None
        try:
            found = self.work.evaluation()
        except Exception as error:  # of photographs, of the store, of a network of others
            logger.warning("step %d: no evaluation: %s: %s", step, type(error).__name__, error)
            return {}
        self.metrics = self.metrics | found
        if self.world.rank == 0:
            self.observer.log(step, found)
        return found

    @property
    def best_by(self) -> str:
        """The metric that chooses `best`."""
        return self.work.evaluation.best if self.work.evaluation is not None else "val/loss"

    def _score(self, step: int, metrics: Metrics, config: dict[str, Any]) -> float:
        """The least is `best`: of the evaluation's metric, else of the validation loss; infinite where there is none.

        `config`: that of the checkpoint, flat; a run that goes on may have other steps.
        """
        if (evaluation := self.work.evaluation) is not None:
            value = metrics.get(evaluation.best, nan)
            return inf if isnan(value) else -value if evaluation.higher else value
        if step % config["loop.validate_every"] and step != config["loop.steps"]:
            return inf                                                  # the metrics are of the validation before
        return metrics.get("val/loss", -inf)                            # without photos to validate on each is the best

    def _best_score(self) -> float:
        """Of the checkpoint that `best` means; infinite where there is none, or it was being written anew."""
        step = checkpoint.pointed(self.run.uri, "best")
        if step not in checkpoint.steps(self.run.uri):
            return inf
        meta = checkpoint.load(checkpoint.step_uri(self.run.uri, step)).meta
        if (before := self._judged_by(meta["config"])) != (now := self._judged_by(flat(self.run.config))):
            if self.world.rank == 0:
                names = ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in now if now[name] != before.get(name))
                logger.warning("run %s: %s: step %d, the best so far, was judged otherwise; best is chosen anew from here on",
                               self.run.uri, names, step)
            return inf
        score = self._score(step, meta["metrics"], meta["config"])
        return inf if score == -inf else score

    def _judged_by(self, config: dict[str, Any]) -> dict[str, Any]:
        """What the score of a checkpoint depends on that may change on the way, of a flat config."""
        heads = "evaluation." if self.work.evaluation is not None else "loop.validate_samples"
        return {name: value for name, value in config.items() if name.startswith(heads) and name != "evaluation.every"}

    def _meta(self, step: int, metrics: Metrics) -> dict[str, object]:
        config, facts = self.run.config, self.work.facts()
        weights = (self.run.start or {}).get("weights", {}) | facts.get("weights", {})
        return {
            "stage": self.run.stage, "preset": self.run.preset, "step": step, "g": step * config.loop.batch,
            "config": flat(config), "identity": identity(config), "snapshot": self.run.snapshot, "metrics": metrics,
            "best_by": self.best_by, "mlflow_run_id": self.run.tracking_id, "origin": origin(self.run.start), **facts,
            "weights": weights,
            "versions": {name: version(name) for name in ("infd", "torch", "numpy", "pillow-simd")},
        }


def origin(start: dict[str, Any] | None) -> dict[str, Any]:
    """Where a run's first weights came from, for its checkpoints: {} for the seed."""
    if start is None:
        return {}
    return {**start["origin"], "checkpoint": start["checkpoint"], "start_step": start["step"],
            "start_sha256": start["sha256"], "start_snapshot": start["snapshot"]}
