"""Stage two in a run: what it reads, its previews, what of a batch is kept when a loss is not finite."""

import copy
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infd import checkpoint, storage
from infd.config import DiffusionTrainingConfig
from infd.config_form import flat
from infd.data.latents import LatentBatch, LatentLoader, Latents, latent_crop, open_latents
from infd.data.order import Order, validation_samples
from infd.data.snapshot import open_dataset
from infd.errors import CheckpointError, ConfigError
from infd.generation.load import load_autoencoder
from infd.generation.model import Model
from infd.generation.reconstruct import PANEL, Panel, sheet, to_image
from infd.models.fields import Box
from infd.training import evaluation, interruption, posthoc
from infd.training.alarms import Alarm, Watch
from infd.training.latent_diffusion import DiffusionStage
from infd.training.loop import Metrics
from infd.training.run import Observer, Run, carry_on, check_batch, resume, starting_weights
from infd.training.world import World

logger = logging.getLogger(__name__)

SIDES = (256, 1024)
"""Previews render these sides, and at most loop.preview_px."""


def fitted(config: DiffusionTrainingConfig, latents: Latents) -> DiffusionTrainingConfig:
    """`config` with the scale of these latents where it asks for it. Raises ConfigError where its model does not fit them."""
    info, model = latents.info, config.model
    if info["z_dim"] != model.z_dim:
        raise ConfigError(f"model.z_dim={model.z_dim}: the latents {latents.uri} have {info['z_dim']} channels; set it to that")
    if latents.shape[1] % model.factor:
        raise ConfigError(f"model.widths={model.widths}: they halve z {len(model.widths) - 1} times; the latents have a side "
                          f"of {latents.shape[1]}, which must be a multiple of {model.factor}; use fewer widths")
    if config.flip and not info["flip"]:
        raise ConfigError(f"flip=True: the latents {latents.uri} hold no mirrored views; encode again without --no-flip")
    groups = len(latents.manifest.group_names)
    if model.condition == "class" and "" in latents.manifest.group_names:
        raise ConfigError(f"model.condition=class: some photos of {info['snapshot']} have no group, and a class needs a "
                          "name to be drawn by; ingest them with --group NAME")
    if model.condition == "class" and model.classes != groups:
        raise ConfigError(f"model.classes={model.classes}: the dataset has {groups} groups "
                          f"({', '.join(latents.manifest.group_names)}); set it to that")
    if model.condition == "text" and (latents.context is None or latents.context[1] != model.context_dim):
        found = f"embeddings of {latents.context[1]} channels" if latents.context else "no embedded captions"
        raise ConfigError(f"model.context_dim={model.context_dim}: the latents {latents.uri} hold {found}; set it to that, or "
                          "encode with --conditions")
    if config.diffusion.scale:
        return config
    return replace(config, diffusion=replace(config.diffusion, scale=info["scale"]))


def run_diffusion(
    run: Run[DiffusionTrainingConfig], *, world: World, observer: Observer,
    wished: Callable[[], bool] = interruption.wished,
) -> Metrics:
    """Train on this rank from the newest checkpoint to the last step; returns the last metrics.

    `wished`: whether someone asks this rank to stop. Raises Interrupted then, with a checkpoint saved.
    """
    config, latents = run.config, latents_of(run)
    check_batch(config.loop, world.size)
    order = Order(latents.manifest, latent_crop(flip=config.flip), batch=config.loop.batch, seed=config.loop.seed)
    newest = checkpoint.newest(run.uri)
    stage = DiffusionStage(config, world=world, validation=validation_batches(latents, order, config, world),
                           start=denoiser_of(starting_weights(run)) if newest is None else None)
    start, metrics = resume(run, stage, newest)
    if start >= config.loop.steps:
        logger.info("run %s: already at step %d of %d", run.uri, start, config.loop.steps)
        return metrics
    loader = LatentLoader(latents, order, config.loader, slots=world.slots(config.loop.batch), start_step=start,
                          pin_memory=world.device.type == "cuda")
    with loader:
        work = DiffusionWork(run, stage, latents, order, loader)
        return carry_on(run, work, loader, start, world=world, observer=observer, wished=wished)


def latents_of(run: Run[DiffusionTrainingConfig]) -> Latents:
    """The latents that the run is pinned to. Raises CheckpointError, naming both hashes, where they were made again."""
    pinned = run.latents or {}
    latents = open_latents(pinned["address"])
    if latents.sha256 != pinned["sha256"]:
        raise CheckpointError(f"latents {latents.uri}: their manifest has sha256 {latents.sha256}; run {run.uri} began with "
                              f"{pinned['sha256']}; restore them, or begin another --run")
    return latents


def denoiser_of(weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The denoiser's tensors of a checkpoint to start from: of its moving average where it has one."""
    if weights is None:
        return None
    for head in ("denoiser_average.", "denoiser."):
        if part := {name.removeprefix(head): value for name, value in weights.items() if name.startswith(head)}:
            return part
    return {}


def validation_batches(latents: Latents, order: Order, config: DiffusionTrainingConfig, world: World) -> list[LatentBatch]:
    """This rank's share of the fixed validation latents."""
    loop = config.loop
    samples = validation_samples(latents.manifest, latent_crop(flip=False), loop.validate_samples, loop.seed)
    if not samples and world.rank == 0:
        logger.warning("latents %s: no photo in the val split; no validation, and `best` is `last`", latents.uri)
    samples = samples[world.rank::world.size]
    if not samples:
        return []
    with LatentLoader(latents, order, config.loader, slots=range(1)) as loader:
        return [loader.read(samples[i:i + loop.batch]) for i in range(0, len(samples), loop.batch)]


class DiffusionWork:
    """What stage two adds to its run."""

    def __init__(self, run: Run[DiffusionTrainingConfig], stage: DiffusionStage, latents: Latents, order: Order,
                 loader: LatentLoader) -> None:
        self.run, self.stage, self.latents, self.order, self.loader = run, stage, latents, order, loader
        self.autoencoder = load_autoencoder(latents.autoencoder_uri)  # now: a store that fails later costs no step
        self.made = checkpoint.load(latents.autoencoder_uri).meta
        self.watch = Watch.of_gradients(run.config)
        self.evaluation = evaluation.samples(
            run.config, lambda: open_dataset(run.snapshot), model=self.model, world=stage.world,
            latents=lambda model, seeds: self._drawn(model, seeds, steps=run.config.evaluation.steps))

    def alarms(self, step: int, metrics: Metrics) -> list[Alarm]:
        return self.watch.look(step, metrics)

    def model_beside(self) -> dict[str, Tensor]:
        """The autoencoder: a stage-two checkpoint generates by itself."""
        return {f"autoencoder.{name}": value for name, value in self.autoencoder.state_dict().items()}

    def saved(self, step: int) -> None:
        """A snapshot of the post-hoc averages, where they are kept."""
        if self.stage.posthoc is not None:
            posthoc.write_snapshot(self.run.uri, step, self.stage.posthoc)

    def facts(self) -> dict[str, Any]:
        info, autoencoder, made = self.latents.info, self.autoencoder, self.made
        return {
            "latents": self.run.latents, "groups": list(self.latents.manifest.group_names),
            "autoencoder": {"config": flat(autoencoder.config), "lowres_px": autoencoder.lowres_px,
                            "patch_px": autoencoder.patch_px, "checkpoint": info["checkpoint"],
                            "sha256": info["checkpoint_sha256"], "step": made["step"],
                            "origin": made.get("origin", {})},
            "weights": made.get("weights", {})}

    def sheet(self) -> Image.Image:
        """The samples of a few fixed seeds, rendered at SIDES, and the middle of the largest at its own pixels."""
        model, config = self.model(), self.run.config
        z = self._drawn(model, range(config.loop.preview_photos), steps=config.preview_steps)
        return sheet([self._row(model, z[i:i + 1], seed=i) for i in range(len(z))])

    def model(self) -> Model:
        """Both stages, with the denoiser's weights of the moment, on this rank's device."""
        return Model(copy.deepcopy(self.autoencoder).to(self.stage.world.device), self.stage.shown.eval(),
                     self.run.config.diffusion, groups=tuple(self.latents.manifest.group_names))

    def _drawn(self, model: Model, seeds: Sequence[int], *, steps: int) -> Tensor:
        """z of seeds; classes and captions take turns."""
        groups, condition = model.groups, self.run.config.model.condition
        return model.latents(seeds, steps=steps, context=self._captions(seeds) if condition == "text" else None,
                             group=[groups[seed % len(groups)] for seed in seeds] if condition == "class" else "")

    def _row(self, model: Model, z: Tensor, *, seed: int) -> list[Panel]:
        field = model.field(z)
        statistics = field.reference()
        panels = []
        for side in sorted({min(side, self.run.config.loop.preview_px) for side in SIDES}):
            panels.append(Panel(to_image(field.render(side, side, statistics=statistics)), f"seed {seed} at {side}"))
            if side > PANEL:
                edge = (side - PANEL) // 2
                middle = field.render(side, side, box=Box(edge, edge, PANEL, PANEL), statistics=statistics)
                panels.append(Panel(to_image(middle), f"the middle {PANEL} px of it"))
        return panels

    def _captions(self, seeds: Sequence[int]) -> Tensor:
        """Embeddings (n, S, K) of captions, in turn."""
        rows = [seed % len(self.latents) for seed in seeds]
        return torch.from_numpy(np.stack([self.latents.take("context", row) for row in rows]))

    def keep(self, step: int, address: str) -> list[str]:
        """Write the global batch of `step`; image_ids of its photographs."""
        size = self.run.config.loop.batch
        batch = self.loader.read([self.order.sample(g) for g in range((step - 1) * size, step * size)])
        names = [self.latents[row]["image_id"] for row in batch.rows]
        buffer = io.BytesIO()
        np.savez(buffer, step=step, g=batch.g.numpy(), moments=batch.moments.numpy(), rows=np.array(batch.rows),
                 image_ids=np.array(names))
        storage.put_atomic(address, buffer.getvalue())
        return names
