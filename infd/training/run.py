"""A training run: what it is (run.json), how it begins or goes on, and what it leaves behind.

    RUN/run.json                preset, config, snapshot: written once, by whoever comes first
    RUN/checkpoints/…           infd/checkpoint.py
    RUN/previews/step-….png     photographs beside their renders
    RUN/failures/step-….npz     the batch of a loss that was not finite

Everything here runs on each rank; rank 0 alone writes.
"""

import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infd import checkpoint, storage
from infd.config import (
    AutoencoderTrainingConfig,
    departures,
    differing,
    digest,
    flat,
    identity,
    require,
    unflat,
)
from infd.data.loader import Batch, Loader
from infd.data.order import Order, Sample, slots_of, validation_samples
from infd.data.snapshot import Dataset, newest_number, open_dataset, split_address
from infd.errors import CheckpointError, ConfigError, DatasetError, InfdError, PreconditionFailed, StorageError, TrainingError
from infd.generation.load import autoencoder_config
from infd.generation.reconstruct import View, compare, deep_zoom, sheet, subject
from infd.losses.perceptual import Lpips
from infd.training import interruption
from infd.training.alarms import Alarm, Watch
from infd.training.autoencoder import AutoencoderStage
from infd.training.loop import Metrics, train
from infd.training.world import World
from infd.weights import load_weights, network

logger = logging.getLogger(__name__)

SAVE_TRIES, SAVE_WAIT_S = 4, 15
"""Of a checkpoint, beyond what a store's client retries by itself: a full disk that someone clears, a store that restarts."""


@dataclass(frozen=True)
class Run:
    """A run as run.json records it; `snapshot` is pinned, so that the order of samples never changes."""

    uri: str
    preset: str
    config: AutoencoderTrainingConfig
    snapshot: str
    start: dict[str, Any] | None = None
    """The checkpoint whose weights it starts from, as `Starting` in run.json; None: from the seed."""
    tracking_id: str | None = None
    """Of the MLflow run, where it is tracked; goes into every checkpoint."""


class Observer(Protocol):
    """Who is told of progress on rank 0 (a terminal, MLflow); it never stops training."""

    def log(self, step: int, metrics: Metrics) -> None: ...

    def picture(self, step: int, name: str, image: Image.Image) -> None: ...

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None: ...

    def alarm(self, step: int, alarm: Alarm) -> None: ...


def default_run(dataset: str, preset: str, config: AutoencoderTrainingConfig, start_from: str = "") -> str:
    """DATASET/training/PRESET-HASH, the hash being that of the fields that change numbers and are not at their default."""
    told = departures(config) | ({"start_from": storage.absolute(start_from)} if start_from else {})
    return storage.join(split_address(dataset)[0], "training", f"{preset}-{digest(told)[:8]}")


def open_run(uri: str, *, preset: str, config: AutoencoderTrainingConfig, dataset: str, start_from: str = "") -> Run:
    """Begin the run at `uri`, or go on with the one that is there.

    A run that is there keeps its snapshot and what it started from; its config may differ only in operational fields.
    `start_from`: a checkpoint for the weights of the first step. Raises CheckpointError naming what differs, and
    ConfigError where parts are frozen that start from nothing.
    """
    uri, dataset = storage.absolute(uri), storage.absolute(dataset)
    if config.freeze and not start_from:
        raise ConfigError(f"freeze={' '.join(config.freeze)}: they would keep random weights; give --start-from CHECKPOINT")
    record = storage.join(uri, "run.json")
    if not storage.exists(record):
        snapshot = open_dataset(dataset).snapshot_uri
        content = {"preset": preset, "config": flat(config), "identity": identity(config), "snapshot": snapshot,
                   "start": starting(storage.absolute(start_from), config) if start_from else None}
        try:
            storage.put_if_absent(record, json.dumps(content, indent=1, sort_keys=True).encode())
        except PreconditionFailed:
            logger.info("run %s: begun by another process at the same time; going on with it", uri)
    found = json.loads(storage.read_bytes(record))
    before = unflat(AutoencoderTrainingConfig, found["config"])
    if names := differing(before, config):
        old, new = flat(before), flat(config)
        changes = ", ".join(f"{name} was {old.get(name)} and is {new.get(name)}" for name in names)
        raise CheckpointError(f"run {uri}: its config differs ({changes}); a run goes on with its own config; "
                              "name another --run, or take the old values")
    if dataset.rstrip("/") not in (found["snapshot"], found["snapshot"].rsplit("@", 1)[0]):
        raise CheckpointError(f"run {uri}: it reads {found['snapshot']}, not {dataset}; name another --run")
    start = found.get("start")
    if (start or {}).get("address", "") != (storage.absolute(start_from) if start_from else ""):
        raise CheckpointError(f"run {uri}: it started from {start['address'] if start else 'random weights'}, not from "
                              f"{start_from or 'random weights'}; name another --run, or say what it started from")
    warn_of_newer(uri, dataset, found["snapshot"])
    return Run(uri, found["preset"], config, found["snapshot"], start)


def starting(address: str, config: AutoencoderTrainingConfig) -> dict[str, Any]:
    """What run.json keeps of the checkpoint that a run starts from. Raises CheckpointError where its model is another."""
    found = checkpoint.load(address)
    there = autoencoder_config(found)
    if names := differing(there, config.model):
        old, new = flat(there), flat(config.model)
        changes = ", ".join(f"model.{name} is {old[name]} there and {new[name]} here" for name in names)
        raise CheckpointError(f"checkpoint {found.uri}: its model is another ({changes}); set these fields as it has them")
    return {"address": address, "checkpoint": found.uri, "step": found.step,
            "sha256": found.files[checkpoint.MODEL]["sha256"], "snapshot": found.meta.get("snapshot"),
            "origin": found.meta.get("origin", {}), "weights": found.meta.get("weights", {})}


def starting_weights(run: Run) -> dict[str, Tensor] | None:
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


def required_weights(config: AutoencoderTrainingConfig) -> Lpips | None:
    """LPIPS with its weights from the cache; None where its weight is 0. Raises WeightsError."""
    if config.loss.lpips == 0:
        return None
    net = config.loss.lpips_net
    return Lpips.from_state_dict(net, load_weights(f"lpips-{net}"))


def check_batch(config: AutoencoderTrainingConfig, workers: int) -> None:
    """Raise ConfigError unless every worker owns the same number of slots."""
    slots_of(rank=0, world=workers, batch=config.loop.batch)
    share, parts = config.loop.batch // workers, config.loop.accumulate
    require(share % parts == 0, "loop.accumulate", parts, f"must divide a worker's share of the batch, {share}")


def run_autoencoder(
    run: Run, *, world: World, observer: Observer, wished: Callable[[], bool] = interruption.wished,
) -> Metrics:
    """Train on this rank from the newest checkpoint to the last step; returns the last metrics.

    `wished`: whether someone asks this rank to stop. Raises Interrupted then, with a checkpoint saved.
    """
    config = run.config
    check_batch(config, world.size)
    dataset = open_dataset(run.snapshot)
    order = Order(dataset.manifest, config.crop, batch=config.loop.batch, seed=config.loop.seed)
    validation = validation_batches(dataset, config, world)
    newest = checkpoint.newest(run.uri)
    stage = AutoencoderStage(config, world=world, lpips=required_weights(config), validation=validation,
                             start=starting_weights(run) if newest is None else None)
    start, metrics = resume(run, stage, newest)
    if start >= config.loop.steps:
        logger.info("run %s: already at step %d of %d", run.uri, start, config.loop.steps)
        return metrics
    loader = Loader(dataset, order, config.loader, slots=world.slots(config.loop.batch), start_step=start,
                    pin_memory=world.device.type == "cuda")
    hooks = RunHooks(run, stage, dataset, order, loader, world, observer)
    with loader:
        train(stage, loader, config.loop, hooks, world=world, start=start, wished=wished)
    return hooks.metrics


def resume(run: Run, stage: AutoencoderStage, found: checkpoint.Checkpoint | None) -> tuple[int, Metrics]:
    """Load the newest checkpoint of the run into `stage`; (its step, its metrics), or (0, {})."""
    if found is None:
        return 0, {}
    stage.load_state(found.model(), found.train_state())
    logger.info("run %s: going on from step %d", run.uri, found.step)
    return found.step, found.meta["metrics"]


def validation_batches(dataset: Dataset, config: AutoencoderTrainingConfig, world: World) -> list[Batch]:
    """This rank's share of the fixed validation crops, read once and kept (uint8)."""
    loop = config.loop
    samples = validation_samples(dataset.manifest, config.crop, loop.validate_samples, loop.seed)
    if not samples and world.rank == 0:
        logger.warning("dataset %s: no photo in its val split; no validation, and `best` is `last`", dataset.snapshot_uri)
    samples = samples[world.rank::world.size]
    if not samples:
        return []
    order = Order(dataset.manifest, config.crop, batch=loop.batch, seed=loop.seed)
    loader = Loader(dataset, order, config.loader, slots=range(1), start_step=0)
    with loader:
        return [loader.read(samples[i:i + loop.batch]) for i in range(0, len(samples), loop.batch)]


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

    def __init__(self, run: Run, stage: AutoencoderStage, dataset: Dataset, order: Order, loader: Loader,
                 world: World, observer: Observer) -> None:
        self.run, self.stage, self.dataset, self.order = run, stage, dataset, order
        self.loader, self.world, self.observer = loader, world, observer
        self.metrics: Metrics = {}
        self.best = self._best_loss()
        self.watch = Watch(run.config, workers=world.size)

    def log(self, step: int, metrics: Metrics) -> None:
        self.metrics = self.metrics | metrics
        if self.world.rank == 0:
            self.observer.log(step, metrics)
            for alarm in self.watch.look(step, metrics):
                self.observer.alarm(step, alarm)

    def validated(self, step: int, metrics: Metrics) -> None:
        self.metrics = self.metrics | metrics
        if self.world.rank == 0 and metrics:
            self.observer.log(step, metrics)

    def save(self, step: int, metrics: Metrics) -> None:
        """Write the checkpoint of `step`, then let `best` (where it is) and `last` mean it, then remove old ones.

        A store that does not take a write is tried SAVE_TRIES times; then StorageError, and the checkpoint before is whole.
        """
        if not self.stage.finite():                                # alike on all ranks, so all of them stop
            self.not_finite(step)
        if self.world.rank != 0:
            return
        uri, what = checkpoint.step_uri(self.run.uri, step), f"run {self.run.uri}: the checkpoint of step {step}"
        model, state, meta = self.stage.model_state(), self.stage.train_state(), self._meta(step, metrics)
        persistent(lambda: checkpoint.save(uri, model=model, train_state=state, meta=meta), what=what)
        validates = step % self.run.config.loop.validate_every == 0 or step == self.run.config.loop.steps
        loss = metrics.get("val/loss", -inf) if validates else inf  # without photos to validate on each is the best
        if loss < self.best or loss == -inf:
            self.best = loss
            persistent(lambda: checkpoint.point(self.run.uri, "best", step), what=what)
        persistent(lambda: checkpoint.point(self.run.uri, "last", step), what=what)
        try:
            checkpoint.prune(self.run.uri, keep_every=self.run.config.loop.keep_every)
        except StorageError as error:
            logger.warning("step %d: old checkpoints are not removed: %s", step, error)
        self.observer.checkpointed(step, uri, metrics)

    def preview(self, step: int) -> None:
        """A sheet of the same few photographs beside their renders; of the val split where it has any. It is not worth a
        run: what goes wrong is a warning."""
        if self.world.rank != 0:
            return
        try:
            page = self._sheet()
            buffer = io.BytesIO()
            page.save(buffer, "PNG")
            storage.put_atomic(storage.join(self.run.uri, "previews", f"step-{step:08d}.png"), buffer.getvalue())
        except (InfdError, OSError, torch.OutOfMemoryError) as error:
            logger.warning("step %d: no preview: %s", step, error)
            return
        self.observer.picture(step, "preview", page)

    def _sheet(self) -> Image.Image:
        network, config = self.stage.shown.eval(), self.run.config
        rows = []
        for row in preview_rows(self.dataset, config.loop.preview_photos):
            seen = subject(network, self._view(row), native=int(self.dataset.manifest.short_side[row]),
                           lowres_px=config.crop.lowres_px)
            rows.append([*compare(seen, most_px=config.loop.preview_px), *deep_zoom(seen)])
        return sheet(rows)

    def not_finite(self, step: int) -> None:
        """Rank 0 saves the batch of `step`, that of all ranks; all raise TrainingError with its photographs' addresses."""
        size = self.run.config.loop.batch
        samples = [self.order.sample(g) for g in range((step - 1) * size, step * size)]
        address = storage.join(self.run.uri, "failures", f"step-{step:08d}.npz")
        if self.world.rank != 0:
            raise TrainingError(f"step {step}: a loss or a weight is not finite; rank 0 saves the batch as {address}")
        try:
            uris = self._keep(samples, step, address)
        except (InfdError, OSError) as error:
            logger.warning("step %d: its batch could not be saved: %s", step, error)
            address, uris = "nowhere", []
        raise TrainingError(f"step {step}: a loss or a weight is not finite; the batch was saved as {address} "
                            f"(photos {', '.join(uris)}); look at these photos, or begin another --run with --start-from "
                            f"{self.run.uri}/checkpoints/last and a lower --optimizer.lr, or --loop.precision float32")

    def _keep(self, samples: list[Sample], step: int, address: str) -> list[str]:
        """Write the batch of some samples; uris of their photographs."""
        batch = self.loader.read(samples)
        uris = [self.dataset[row]["uri"] for row in batch.rows]
        buffer = io.BytesIO()
        np.savez(buffer, step=step, g=batch.g.numpy(), lowres=batch.lowres.numpy(), patch=batch.patch.numpy(),
                 r=batch.r.numpy(), y=batch.y.numpy(), x=batch.x.numpy(), rows=np.array(batch.rows), uris=np.array(uris))
        storage.put_atomic(address, buffer.getvalue())
        return uris

    def _view(self, row: int) -> View:
        def part(r: int, y: int, x: int, size: int, /) -> Image.Image:
            return Image.fromarray(self.dataset.patch(row, r=r, y=y, x=x, size=size))

        return part

    def _best_loss(self) -> float:
        """Of the checkpoint that `best` means; infinite where there is none, or it was being written anew."""
        step = checkpoint.pointed(self.run.uri, "best")
        if step not in checkpoint.steps(self.run.uri):
            return inf
        meta = checkpoint.load(checkpoint.step_uri(self.run.uri, step)).meta
        return float(meta["metrics"].get("val/loss", inf))

    def _meta(self, step: int, metrics: Metrics) -> dict[str, object]:
        config = self.run.config
        return {
            "stage": "autoencoder", "preset": self.run.preset, "step": step, "g": step * config.loop.batch,
            "config": flat(config), "identity": identity(config), "snapshot": self.run.snapshot, "metrics": metrics,
            "mlflow_run_id": self.run.tracking_id,
            "weights": (self.run.start or {}).get("weights", {}) | used_weights(config), "origin": origin(self.run.start),
            "versions": {name: version(name) for name in ("infd", "torch", "numpy", "pillow-simd")},
        }


def origin(start: dict[str, Any] | None) -> dict[str, Any]:
    """Where a run's first weights came from, for its checkpoints: {} for the seed."""
    if start is None:
        return {}
    return {**start["origin"], "checkpoint": start["checkpoint"], "start_step": start["step"],
            "start_sha256": start["sha256"], "start_snapshot": start["snapshot"]}


def used_weights(config: AutoencoderTrainingConfig) -> dict[str, dict[str, str]]:
    """Licence, origin and hash of the networks of others that this run learns from."""
    if config.loss.lpips == 0:
        return {}
    used = network(f"lpips-{config.loss.lpips_net}")
    return {used.name: {"licence": used.licence, "origin": used.origin, "sha256": used.sha256}}


def preview_rows(dataset: Dataset, count: int) -> list[int]:
    """Rows that previews show: the first of the val split, else the first of all."""
    held_out = np.flatnonzero(dataset.manifest.split == 1)
    rows = held_out if len(held_out) else np.arange(len(dataset))
    if not len(rows):
        raise DatasetError(f"dataset {dataset.snapshot_uri}: it holds no photo; ingest some first")
    return [int(row) for row in rows[:count]]
