"""Figures on val photos while a run trains, by which `best` is chosen: reconstructions in stage one, samples in stage two.

The measures are those of infd/evaluation. Every rank judges its share, all have the same figures, and nothing random is
drawn that training would miss.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from infd import weights
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, ReconstructionConfig, SamplesConfig
from infd.data.snapshot import Dataset
from infd.errors import InfdError
from infd.evaluation.collect import Statistics, block_features
from infd.evaluation.crops import Cut, WholeImages
from infd.evaluation.evaluate import Values, compared, metric_name, pair_key, pair_values, pairs_result
from infd.evaluation.features import STATES, FeatureNetwork, NetworkConfig, open_network
from infd.evaluation.kid import KidConfig
from infd.evaluation.moments import Moments
from infd.evaluation.pixels import LpipsMetric
from infd.evaluation.protocols import Distances, PairMetric, Pairs
from infd.evaluation.rendered import RenderedSource, reconstructed_field
from infd.evaluation.result import tracked_name
from infd.evaluation.sources import DatasetSource, Source
from infd.generation.model import Model
from infd.models.autoencoder import Autoencoder
from infd.models.fields import Field
from infd.training.loop import Metrics
from infd.training.world import World

logger = logging.getLogger(__name__)

TOGETHER = 16
"""Seeds that are sampled at once."""
BATCH = 32
"""Images through a feature network at once."""
T = TypeVar("T")


class Evaluation(Protocol):
    """What is judged every `every` steps."""

    every: int
    best: str
    """The metric that chooses the checkpoint `best`."""
    higher: bool
    """Whether more of it is better."""

    def __call__(self) -> Metrics:
        """The figures, as eval/…, of the weights as they are; the same on each rank, all of which must call it."""
        ...


def on_all(world: World, share: Callable[[], T]) -> list[T]:
    """What `share()` gives on every rank, by rank. Raises InfdError on all of them where it failed on one, however."""
    error, found = "", None
    try:
        found = share()
    except Exception as caught:                                       # no rank may leave the others waiting
        error = f"{type(caught).__name__}: {caught}"
    gathered = world.gather((error, found))
    for rank, (text, _) in enumerate(gathered):
        if text:
            raise InfdError(f"rank {rank}: {text}")
    return [value for _, value in gathered if value is not None]


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """Items 0, 1, 2, … of which part k holds k, k + len(parts), …"""
    total = sum(map(len, parts))
    return [parts[index % len(parts)][index // len(parts)] for index in range(total)]


def val_source(dataset: Dataset, side: int, world: World) -> tuple[DatasetSource, list[int]] | None:
    """The photos of the val split and the indices of those that hold a view of `side`; None, with a warning, without any."""
    if not (dataset.manifest.split == 1).any():
        warn(world, f"dataset {dataset.snapshot_uri}: no photo in its val split; nothing is evaluated")
        return None
    source = DatasetSource(dataset, split="val")
    large = [index for index in range(len(source)) if source.sides(index).short >= side]
    if not large:
        warn(world, f"dataset {dataset.snapshot_uri}: no photo of its val split has a side of {side} px; nothing is "
                    "evaluated; ask for smaller ones")
        return None
    return source, large


def warn(world: World, text: str) -> None:
    if world.rank == 0:
        logger.warning(text)


# ---------------------------------------------------------------- stage one


class Reconstructions:
    """The centred views of val photos, through the autoencoder and back."""

    def __init__(self, source: Source, indices: Sequence[int], protocol: Pairs, lpips: dict[str, LpipsMetric], *, every: int,
                 lowres_px: int, shown: Callable[[], Autoencoder], world: World) -> None:
        self.source, self.indices, self.protocol, self.lpips = source, indices, protocol, lpips
        self.every, self.lowres_px, self.shown, self.world = every, lowres_px, shown, world
        self.best = tracked_name(pair_key(protocol.metrics[0], protocol.sizes[0]))
        self.higher = not protocol.metrics[0].startswith("lpips")

    def __call__(self) -> Metrics:
        couples = [(str(index), (index, index)) for index in self.indices]
        mine = couples[self.world.rank::self.world.size]
        fields = PhotoFields(self.source, self.shown().eval(), lowres_px=self.lowres_px)

        def share() -> Values:
            rendered = RenderedSource(fields, side=max(self.protocol.sizes))
            return pair_values(self.protocol, self.source, rendered, mine, self.lpips)

        parts = on_all(self.world, share)
        values = {name: interleaved([part.get(name, []) for part in parts]) for name in parts[0]}
        rendered = RenderedSource(fields, side=max(self.protocol.sizes))
        result = pairs_result(self.protocol, self.source, rendered, couples, values, lpips=self.lpips,
                              device=str(self.world.device))
        return {tracked_name(one.name): one.value for one in result.metrics}


class PhotoFields:
    """The fields of photographs, by the weights of the moment."""

    def __init__(self, source: Source, autoencoder: Autoencoder, *, lowres_px: int) -> None:
        self.source, self.autoencoder, self.lowres_px, self.uri = source, autoencoder, lowres_px, source.uri

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def address(self, index: int) -> str:
        return f"reconstruction of {self.source.address(index)}"

    def native(self, index: int) -> int:
        return self.source.sides(index).short

    def make(self, index: int) -> Field:
        return reconstructed_field(self.autoencoder, self.source, index, lowres_px=self.lowres_px)

    def facts(self) -> dict[str, object]:
        return {"kind": "reconstructions", "of": self.source.fingerprint(), "lowres_px": self.lowres_px}


def reconstructions(config: AutoencoderTrainingConfig, dataset: Dataset, *, shown: Callable[[], Autoencoder], world: World,
                    ) -> Reconstructions | None:
    """What a run of stage one evaluates; None where nothing was asked for, or is possible. `shown` gives the weights."""
    wanted = config.evaluation
    if not wanted.every or (found := val_source(dataset, max(wanted.sizes), world)) is None:
        return None
    source, large = found
    metrics: tuple[PairMetric, ...] = tuple(
        name for name in wanted.metrics if not name.startswith("lpips") or at_hand(name.replace("_", "-"), world))
    if not metrics:
        return None
    lpips = {name: LpipsMetric("vgg" if name == "lpips_vgg" else "alex", device=str(world.device))
             for name in metrics if name.startswith("lpips")}
    return Reconstructions(source, large[:wanted.photos], Pairs(name="reconstruction", metrics=metrics, sizes=wanted.sizes),
                           lpips, every=wanted.every, lowres_px=config.crop.lowres_px, shown=shown, world=world)


def at_hand(network: str, world: World) -> bool:
    """Whether every rank has the weights of a network; warns where one has not."""
    if not world.any(weights.check(network).state != "ok"):
        return True
    warn(world, f"weights {network}: not at hand on every worker, so what needs them is not evaluated; "
                f"{weights.how_to_get(network)}")
    return False


# ---------------------------------------------------------------- stage two


class Samples:
    """Seeds drawn and rendered, against val photos, in the features of a network."""

    higher = False

    def __init__(self, source: Source, indices: Sequence[int], network: FeatureNetwork, config: SamplesConfig, *,
                 model: Callable[[], Model], latents: Callable[[Model, Sequence[int]], Tensor], world: World) -> None:
        """`model` gives the weights of the moment, `latents` z (n, Z, l, l) of some seeds."""
        self.source, self.indices, self.network, self.world = source, indices, network, world
        self.every, self.side, self.seeds = config.every, config.side, range(config.images)
        self.model, self.latents = model, latents
        self.protocol = distances(config, photos=len(indices))
        self.best = sample_figures(config, network.name)[0]
        self._real: Statistics | None = None

    def __call__(self) -> Metrics:
        if self._real is None:
            self._real = self._statistics(lambda: self._features(self.source, self._share(self.indices)))
        drawn = self._statistics(self._drawn)
        return {tracked_name(name): value for name, value in compared(self.protocol, self._real, drawn, self.network, {})}

    def _drawn(self) -> np.ndarray:
        """Features of this rank's seeds."""
        seeds = self._share(self.seeds)
        if not seeds:                                                 # more ranks than seeds
            return np.zeros((0, self.network.dim), np.float32)
        model = self.model()
        groups = [self.latents(model, seeds[start:start + TOGETHER]) for start in range(0, len(seeds), TOGETHER)]
        rendered = RenderedSource(SeedFields(model, seeds, torch.cat(groups)), side=self.side)
        return self._features(rendered, range(len(seeds)))

    def _share(self, items: Sequence[int]) -> Sequence[int]:
        return items[self.world.rank::self.world.size]

    def _features(self, source: Source, indices: Sequence[int]) -> np.ndarray:
        return block_features(source, [Cut(index, self.side, p=self.side) for index in indices], self.network, batch=BATCH)

    def _statistics(self, share: Callable[[], np.ndarray]) -> Statistics:
        features = np.stack(interleaved([list(part) for part in on_all(self.world, share)]))
        return Statistics(Moments.of(features), features)


class SeedFields:
    """The fields of latents (n, Z, l, l) that were drawn."""

    def __init__(self, model: Model, seeds: Sequence[int], z: Tensor) -> None:
        self.model, self.seeds, self.z, self.uri = model, seeds, z, "samples of this run"

    def __len__(self) -> int:
        return len(self.seeds)

    def name(self, index: int) -> str:
        return f"seed-{self.seeds[index]:08d}"

    def address(self, index: int) -> str:
        return f"seed {self.seeds[index]}"

    def native(self, index: int) -> int:
        return 0

    def make(self, index: int) -> Field:
        return self.model.field(self.z[index:index + 1])

    def facts(self) -> dict[str, object]:
        return {"kind": "seeds", "seeds": list(self.seeds)}


def distances(config: SamplesConfig, *, photos: int) -> Distances:
    """How samples are compared with that many photos."""
    return Distances(name="fid", crops=WholeImages(side=config.side), metrics=config.metrics,
                     kid=KidConfig(subsets=1, subset_size=min(photos, config.images)))


def sample_figures(config: SamplesConfig, network: str) -> list[str]:
    """Names of the figures of an evaluation in stage two, as training tells them; the first chooses `best`."""
    protocol = distances(config, photos=config.images)
    return [tracked_name(metric_name(metric, protocol, network)) for metric in config.metrics]


def networks_of(metric: str, config: ReconstructionConfig | SamplesConfig) -> list[str]:
    """Names in `infd.weights` of what a figure eval/… needs."""
    if isinstance(config, SamplesConfig):
        return [STATES[config.network]]
    name = metric.removeprefix("eval/").partition(".")[0]
    return [name.replace("_", "-")] if name.startswith("lpips") else []


def samples(config: DiffusionTrainingConfig, dataset: Callable[[], Dataset], *, model: Callable[[], Model],
            latents: Callable[[Model, Sequence[int]], Tensor], world: World) -> Samples | None:
    """What a run of stage two evaluates, against the photographs of its snapshot; None where nothing was asked for, or is
    possible."""
    wanted = config.evaluation
    if not wanted.every or not at_hand(STATES[wanted.network], world):
        return None
    if (found := val_source(dataset(), wanted.side, world)) is None:
        return None
    source, large = found
    if len(large) < 2:
        warn(world, f"{source.uri}: one val photo alone; nothing is evaluated; ingest more, or a larger --val-fraction")
        return None
    network = open_network(NetworkConfig(name=wanted.network), device=str(world.device))
    return Samples(source, large[:wanted.images], network, wanted, model=model, latents=latents, world=world)
