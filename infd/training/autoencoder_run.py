"""Stage one in a run: what it reads, its previews, what of a batch is kept when a loss is not finite."""

import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from infd import checkpoint, storage
from infd.config import AutoencoderTrainingConfig
from infd.data.loader import Batch, Loader
from infd.data.order import Order, validation_samples
from infd.data.snapshot import Dataset, open_dataset
from infd.errors import DatasetError
from infd.generation.reconstruct import View, compare, deep_zoom, sheet, subject
from infd.losses.perceptual import Lpips
from infd.training import evaluation, interruption
from infd.training.alarms import Alarm, Watch
from infd.training.autoencoder import AutoencoderStage
from infd.training.loop import Metrics
from infd.training.run import Observer, Run, carry_on, check_batch, resume, starting_weights
from infd.training.world import World
from infd.weights import load_weights, network

logger = logging.getLogger(__name__)


def required_weights(config: AutoencoderTrainingConfig) -> Lpips | None:
    """LPIPS with its weights from the cache; None where its weight is 0. Raises WeightsError."""
    if config.loss.lpips == 0:
        return None
    net = config.loss.lpips_net
    return Lpips.from_state_dict(net, load_weights(f"lpips-{net}"))


def run_autoencoder(
    run: Run[AutoencoderTrainingConfig], *, world: World, observer: Observer, wished: Callable[[], bool] = interruption.wished,
) -> Metrics:
    """Train on this rank from the newest checkpoint to the last step; returns the last metrics.

    `wished`: whether someone asks this rank to stop. Raises Interrupted then, with a checkpoint saved.
    """
    config = run.config
    check_batch(config.loop, world.size)
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
    with loader:
        work = AutoencoderWork(run, stage, dataset, order, loader, workers=world.size)
        return carry_on(run, work, loader, start, world=world, observer=observer, wished=wished)


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


class AutoencoderWork:
    """What stage one adds to its run."""

    def __init__(self, run: Run[AutoencoderTrainingConfig], stage: AutoencoderStage, dataset: Dataset, order: Order,
                 loader: Loader, *, workers: int) -> None:
        self.run, self.stage, self.dataset, self.order, self.loader = run, stage, dataset, order, loader
        self.watch = Watch.of_autoencoder(run.config, workers=workers)
        self.evaluation = evaluation.reconstructions(run.config, dataset, shown=lambda: self.stage.shown, world=stage.world)

    def alarms(self, step: int, metrics: Metrics) -> list[Alarm]:
        return self.watch.look(step, metrics)

    def model_beside(self) -> dict[str, Tensor]:
        return {}

    def saved(self, step: int) -> None:
        """Nothing belongs beside it."""

    def facts(self) -> dict[str, Any]:
        return {"weights": used_weights(self.run.config)}

    def sheet(self) -> Image.Image:
        """The same few photographs beside their renders; of the val split where it has any."""
        network, config = self.stage.shown.eval(), self.run.config
        rows = []
        for row in preview_rows(self.dataset, config.loop.preview_photos):
            seen = subject(network, self._view(row), native=int(self.dataset.manifest.short_side[row]),
                           lowres_px=config.crop.lowres_px)
            rows.append([*compare(seen, most_px=config.loop.preview_px), *deep_zoom(seen)])
        return sheet(rows)

    def keep(self, step: int, address: str) -> list[str]:
        """Write the global batch of `step`; uris of its photographs."""
        size = self.run.config.loop.batch
        samples = [self.order.sample(g) for g in range((step - 1) * size, step * size)]
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
