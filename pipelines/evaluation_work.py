"""The units of an evaluation: blocks of cuts, of pairs, of fields; each a file of its own, made by whoever comes first.

    OUT/work/features-KEY-000012.safetensors   features float32 (n, D) of a block of cuts
    OUT/work/spectrum-KEY-000012.safetensors   sum of its power spectra
    OUT/work/values-KEY-000003.json            metrics of some pairs or fields
    OUT/work/latents-KEY.safetensors           z of some seeds

KEY is a hash of all that the block depends on, so a killed run goes on and nothing is ever mistaken for another's.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from infd import errors, storage
from infd.compat import plain_float32
from infd.config import SampleConfig
from infd.errors import InfdError, StackError
from infd.evaluation import collect, evaluate
from infd.evaluation.crops import Cut
from infd.evaluation.errors import EvaluationError
from infd.evaluation.features import FeatureNetwork, open_network
from infd.evaluation.pixels import LpipsMetric
from infd.evaluation.protocols import Consistency, Distances, Pairs, Protocol, Spectra
from infd.evaluation.rendered import Drawn, RenderedSource, drawn, kind_at, reconstructions, stored
from infd.evaluation.sources import FolderSource, Source, Split, open_source
from infd.evaluation.spectra import Spectrum
from infd.generation.reconstruct import To8Bits
from pipelines import cluster, logs
from pipelines.evaluation_pictures import take_pictures
from pipelines.ingest import quiet

logger = logging.getLogger(__name__)

Task = dict[str, Any]
"""A unit of work, of JSON values: `kind`, `out` and what it is made of."""


# ---------------------------------------------------------------- sources by address


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What a worker needs to open a source by itself."""

    uri: str
    split: Split = "all"
    side: int = 0
    """Of renders; 0: that of the images which they reconstruct."""
    first_seed: int = 0
    seeds: int = 0
    sample: SampleConfig = SampleConfig()
    to_8_bits: To8Bits = "nearest"
    """Of renders."""
    through_px: int = 0
    """Of reconstructions: infd.evaluation.rendered.Reconstructed."""
    of: "SourceSpec | None" = None
    """What an autoencoder reconstructs, and what latents are matched with."""
    listing: str = ""
    """Of a folder: its files as they were when the evaluation began."""


def open_spec(spec: SourceSpec, *, device: str = "cpu", kept: str = "", opened: dict[SourceSpec, Source] | None = None
              ) -> Source:
    """The source. `kept`: where latents of seeds are kept. `opened`: those that are open, which a folder's files are read for;
    what is opened here is put there.

    Raises EvaluationError: nothing to reconstruct, or no number of seeds; CheckpointError.
    """
    opened = {} if opened is None else opened
    if spec not in opened:
        opened[spec] = open_anew(spec, device=device, kept=kept, opened=opened)
    return opened[spec]


def open_anew(spec: SourceSpec, *, device: str, kept: str, opened: dict[SourceSpec, Source]) -> Source:
    match kind_at(spec.uri):
        case "autoencoder":
            if spec.of is None:
                raise EvaluationError(f"{spec.uri}: a checkpoint of stage one, and nothing to reconstruct; expected the "
                                      "photographs before it; name a dataset or a folder first")
            truth = open_spec(spec.of, device=device, kept=kept, opened=opened)
            return reconstructions(truth, spec.uri, side=spec.side, mode=spec.sample.mode, to_8_bits=spec.to_8_bits,
                                   through_px=spec.through_px, device=device)
        case "latent_diffusion":
            if not spec.seeds:
                raise EvaluationError(f"{spec.uri}: a checkpoint of stage two draws any number of images; expected how many; "
                                      "say --images")
            return drawn(spec.uri, range(spec.first_seed, spec.first_seed + spec.seeds), side=spec.side, config=spec.sample,
                         to_8_bits=spec.to_8_bits, device=device, kept=kept)
        case "latents":
            truth = open_spec(spec.of, device=device, kept=kept, opened=opened) if spec.of else None
            return stored(spec.uri, truth, split=spec.split, side=spec.side, mode=spec.sample.mode, to_8_bits=spec.to_8_bits,
                          device=device)
    source = open_source(spec.uri, split=spec.split)
    if spec.listing and isinstance(source, FolderSource) and source.listing != spec.listing:
        raise EvaluationError(f"{spec.uri}: its files changed while they were evaluated; expected those that were there at the "
                              "start; let nothing write there, and run the same command again")
    return source


# ---------------------------------------------------------------- one worker


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The same for all units."""

    protocol: Protocol
    specs: tuple[SourceSpec, ...]
    work: str
    device: str
    network: FeatureNetwork | None = None
    """In place of the protocol's."""


class Unit:
    """Opens sources and networks once, when a task first asks for them, and does tasks."""

    def __init__(self, settings: Settings, *, actor: bool = False) -> None:
        if actor:
            logs.to_stderr()
        if settings.device == "cpu":
            torch.set_num_threads(1)                # so that the bits do not depend on how many cores a machine has
        else:
            plain_float32()
        self.settings = settings

    @cached_property
    def sources(self) -> list[Source]:
        opened: dict[SourceSpec, Source] = {}
        return [open_spec(spec, device=self.settings.device, kept=self.settings.work, opened=opened)
                for spec in self.settings.specs]

    @cached_property
    def network(self) -> FeatureNetwork:
        protocol = cast(Distances, self.settings.protocol)
        return self.settings.network or open_network(protocol.network, device=self.settings.device)

    @cached_property
    def lpips(self) -> dict[str, LpipsMetric]:
        return evaluate.open_lpips(cast(Pairs, self.settings.protocol), device=self.settings.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """A task as JSON; an InfdError is a row, because Ray keeps only the text of an error."""
        try:
            self.work(json.loads(row["task"]))
            return {"kind": "", "error": ""}
        except InfdError as error:
            return {"kind": type(error).__name__, "error": str(error)}

    def work(self, task: Task) -> None:
        """Do a task: its file is there afterwards. Law: the bytes depend on the task and the settings alone."""
        match task["kind"]:
            case "latents":
                fields = cast(Drawn, cast(RenderedSource, self.sources[task["source"]]).fields)
                fields.latents(task["unit"])
            case "features":
                found = collect.block_features(self.sources[task["source"]], cuts_of(task), self.network,
                                               batch=cast(Distances, self.settings.protocol).batch)
                storage.put_atomic(task["out"], safetensors.numpy.save({"features": found}))
            case "spectrum":
                made = evaluate.block_spectrum(self.sources[task["source"]], cuts_of(task), side=task["side"])
                storage.put_atomic(task["out"], safetensors.numpy.save({"total": made.total, "count": np.array([made.count])}))
            case "values":
                storage.put_atomic(task["out"], json.dumps(self.values(task)).encode())
            case "pictures":
                take_pictures(task, self.sources, self.settings.protocol)
            case kind:
                raise ValueError(f"task of kind {kind}")

    def values(self, task: Task) -> evaluate.Values:
        """Metrics of some pairs or fields; floats survive JSON to the bit."""
        couples = [(name, tuple(indices)) for name, indices in task["couples"]]
        protocol = self.settings.protocol
        if isinstance(protocol, Consistency):
            return evaluate.field_values(protocol, self.sources, couples)
        a, b = self.sources
        return evaluate.pair_values(cast(Pairs, protocol), a, b, couples, self.lpips)


def cuts_of(task: Task) -> list[Cut]:
    return [Cut(*cut) for cut in task["cuts"]]


# ---------------------------------------------------------------- what was made


def read_features(uri: str) -> np.ndarray:
    return _tensors(uri)["features"]


def read_spectrum(uri: str, side: int) -> Spectrum:
    found = _tensors(uri)
    return Spectrum(side, int(found["count"][0]), found["total"])


def read_values(uri: str) -> evaluate.Values:
    try:
        return json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise EvaluationError(damaged(uri)) from error


def _tensors(uri: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(storage.read_bytes(uri))
    except SafetensorError as error:
        raise EvaluationError(damaged(uri)) from error


def damaged(uri: str) -> str:
    return f"{uri}: cannot be read; expected a finished block; delete it and run the same command again"


# ---------------------------------------------------------------- many workers


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Does tasks."""

    device: Literal["cpu", "cuda"]
    run: Callable[[Settings, Sequence[Task]], None]
    """Raises the InfdError of a task that failed; what was finished stays."""


@contextmanager
def engine(*, ray: bool, workers: int, device: str) -> Iterator[Engine]:
    """This process (ray False), or actors on the cluster: `workers` of them; 0: one a GPU, or one a core.

    Raises StackError: no cluster, or one that has not what `device` asks for.
    """
    if not ray:
        cuda = device != "cpu" and torch.cuda.is_available()
        if device == "gpu" and not cuda:
            raise StackError("device=gpu: torch sees no GPU on this machine; expected one; take --device auto")
        yield Engine(device="cuda" if cuda else "cpu", run=run_here)
        return
    with cluster.connect(env=cluster.passed_on()):
        quiet()
        most, on_gpu = cluster.actors(device=device, workers=workers, tasks=sys.maxsize)
        yield Engine(device="cuda" if on_gpu else "cpu",
                     run=lambda settings, tasks: run_on_ray(settings, tasks, workers=most))


def run_here(settings: Settings, tasks: Sequence[Task]) -> None:
    unit = Unit(settings)
    for done, task in enumerate(tasks, 1):
        unit.work(task)
        logger.info("%d of %d blocks", done, len(tasks))


def run_on_ray(settings: Settings, tasks: Sequence[Task], *, workers: int) -> None:
    if not tasks:
        return
    import ray
    from ray.data import ActorPoolStrategy

    cuda = settings.device == "cuda"
    rows = ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks)).map(
        cast(Any, Unit), fn_constructor_args=(settings,), fn_constructor_kwargs={"actor": True}, num_gpus=1 if cuda else 0,
        num_cpus=0 if cuda else 1, compute=ActorPoolStrategy(size=min(workers, len(tasks))))
    for done, row in enumerate(rows.iter_rows(), 1):
        if row["kind"]:
            raise error_of(row["kind"], row["error"])
        logger.info("%d of %d blocks", done, len(tasks))


def error_of(kind: str, text: str) -> InfdError:
    """The error that a worker met."""
    if kind == EvaluationError.__name__:
        return EvaluationError(text)
    return getattr(errors, kind, errors.StorageError)(text)


# ---------------------------------------------------------------- tasks


def feature_tasks(source: int, key: str, cuts: Sequence[Cut], work: str) -> list[Task]:
    """A task a block of cuts."""
    return [{"kind": "features", "source": source, "cuts": [list(cut) for cut in block], "out": at}
            for block, at in zip(collect.blocks(cuts), block_uris("features", key, len(cuts), work), strict=True)]


def spectrum_tasks(source: int, key: str, cuts: Sequence[Cut], protocol: Spectra, work: str) -> list[Task]:
    """A task a block of cuts."""
    return [{"kind": "spectrum", "source": source, "cuts": [list(cut) for cut in block], "side": protocol.crops.p, "out": at}
            for block, at in zip(collect.blocks(cuts), block_uris("spectrum", key, len(cuts), work), strict=True)]


def block_uris(kind: str, key: str, cuts: int, work: str) -> list[str]:
    """Where the blocks of `cuts` cuts are."""
    return [storage.join(work, f"{kind}-{key[:32]}-{index:06d}.safetensors") for index in range(-(-cuts // collect.BLOCK))]


def latent_tasks(sources: Sequence[Source]) -> list[Task]:
    """A task for every unit of seeds. Sources that draw the same seeds share them."""
    tasks: dict[str, Task] = {}
    for index, source in enumerate(sources):
        if isinstance(source, RenderedSource) and isinstance(source.fields, Drawn):
            for unit in range(source.fields.units):
                where = source.fields.kept_at(unit)
                tasks.setdefault(where, {"kind": "latents", "source": index, "unit": unit, "out": where})
    return list(tasks.values())


def missing(tasks: Sequence[Task]) -> list[Task]:
    return [task for task in tasks if not storage.exists(task["out"])]
