"""Evaluations on Ray: blocks as units, finished blocks kept, so that a killed run goes on; one worker or many, the same bits.

    OUT/work/…                          finished blocks: evaluation_work.py; may be deleted once there is a result
    OUT/pfid_infd_256-1024-1f2e3d4c/    one evaluation, by protocol, crops and a hash of its choices and sources
        result.json                     infd.evaluation.result
        pictures.json, pictures/        evaluation_pictures.py
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infd import checkpoint, storage, weights
from infd.config import SampleConfig, require
from infd.config_form import flat
from infd.data.snapshot import newest_number, split_address
from infd.errors import ConfigError, WeightsError
from infd.evaluation import collect, moments
from infd.evaluation import evaluate as library
from infd.evaluation.collect import Statistics
from infd.evaluation.crops import Cut, OneCrop, Plan, RandomScales, WholeImages, plan
from infd.evaluation.errors import EvaluationError
from infd.evaluation.features import INCEPTION, STATES, FeatureNetwork, NetworkConfig, open_network
from infd.evaluation.moments import Moments
from infd.evaluation.protocols import Consistency, Distances, Pairs, Protocol, Spectra
from infd.evaluation.rendered import Reconstructed, RenderedSource, Stored, encoder_side, kind_at, stage_at
from infd.evaluation.result import Metric, Result
from infd.evaluation.sources import DatasetSource, FolderSource, Source, Split
from infd.evaluation.spectra import Spectrum
from infd.generation.registry import resolve
from pipelines import evaluation_work as units
from pipelines.evaluation_pictures import picture_task, ranking
from pipelines.evaluation_wishes import PUBLISHED_PATCHES, Wish, protocols_of
from pipelines.evaluation_work import Engine, Settings, SourceSpec, Task, open_spec
from pipelines.snapshots_text import table_text

logger = logging.getLogger(__name__)

PAIRS_A_BLOCK = 16
"""Pairs or fields of a unit of work."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An evaluation that is about to be made. `sources` are open in this process; what renders them loads no model here."""

    protocol: Protocol
    specs: tuple[SourceSpec, ...]
    sources: list[Source]
    out: str
    engine: Engine
    pictures: bool = True
    network: FeatureNetwork | None = None
    """Of distances, as this process has it."""
    given: FeatureNetwork | None = None
    """Given by the caller in place of the protocol's."""

    @property
    def work(self) -> str:
        return storage.join(self.out, "work")

    @property
    def folder(self) -> str:
        """Where the result goes: by protocol, crops, and a hash of all choices and of the sources' content."""
        about = {"sources": [source.fingerprint() for source in self.sources],
                 "network": self.network.describe() if self.network else {}}
        crops = self.protocol.crops.suffix if isinstance(self.protocol, Distances | Spectra) else ""
        return storage.join(self.out, f"{self.protocol.name}{crops.replace('/', '-')}-{block_key(self, about)[:8]}")

    @property
    def settings(self) -> Settings:
        return Settings(protocol=self.protocol, specs=self.specs, work=self.work, device=self.engine.device,
                        network=self.given)

    def do(self, tasks: Sequence[Task], what: str = "blocks") -> None:
        """Those whose file is not there yet."""
        left = units.missing(tasks)
        if left:
            logger.info("%s: %d of %d %s to make", self.protocol.name, len(left), len(tasks), what)
            self.engine.run(self.settings, left)


# ---------------------------------------------------------------- what is asked


def evaluate_wish(
    wish: Wish, *, out: str = "", cache: str = "", workers: int = 0, device: str = "auto", ray: bool = True,
    pictures: bool = True,
) -> list[tuple[str, Result]]:
    """(address of result.json, result) of each protocol that a wish means. `out`: as `default_out` where empty.

    Raises ConfigError, EvaluationError naming file and rule, WeightsError that offers the networks at hand, CheckpointError.
    """
    specs = specs_of(wish)
    out = storage.absolute(out) if out else default_out(specs)
    with units.engine(ray=ray, workers=workers, device=device) as engine:
        opened: dict[SourceSpec, Source] = {}
        # Seeds have no size before the protocol gives them one; they tell a protocol nothing either.
        seeds_first = len(specs) == 1 or bool(kind_at(specs[0].uri))
        truth = None if seeds_first else open_spec(specs[0], device=engine.device, opened=opened)
        wanted = [(protocol, with_sides(protocol, specs, wish, truth)) for protocol in protocols_of(
            wish, dataset=isinstance(truth, DatasetSource), low_px=low_side(wish, specs))]
        # Absent weights are told of before files are read; each network is read once.
        networks = {one: open_here(one, engine.device) for one in dict.fromkeys(
            protocol.network for protocol, _ in wanted if isinstance(protocol, Distances))}
        for protocol, sided in wanted:
            require_possible(protocol, sources_of(sided, out=out, engine=engine, opened=opened))
        return [evaluate(protocol, sided, out=out, engine=engine, cache=cache, pictures=pictures, opened=opened,
                         networks=networks) for protocol, sided in wanted]


def require_possible(protocol: Protocol, sources: Sequence[Source]) -> None:
    """Raise EvaluationError where images are too few or too small for the crops: of the last protocol, too, before the first
    one is made."""
    if isinstance(protocol, Distances):
        for cuts in plans_of(protocol, sources).values():
            library.require_counts(protocol, cuts, *sources)
    elif isinstance(protocol, Spectra):
        library.spectra_plan(protocol, *sources)


def plans_of(protocol: Distances, sources: Sequence[Source]) -> dict[int, Plan]:
    """The crops of both sets, by seed."""
    a, b = sources
    return {seed: plan(protocol.crops, a, b, seed=seed, count_a=protocol.count_a, count_b=protocol.count_b)
            for seed in protocol.seeds}


def sources_of(
    specs: Sequence[SourceSpec], *, out: str, engine: Engine, opened: dict[SourceSpec, Source],
) -> list[Source]:
    return [open_spec(spec, device=engine.device, kept=storage.join(out, "work"), opened=opened) for spec in specs]


def specs_of(wish: Wish) -> list[SourceSpec]:
    """One for each address; a checkpoint reconstructs the first. Raises ConfigError: too few or too many addresses."""
    wish.require_use()
    several = wish.protocol == "consistency"
    if not several and len(wish.sources) != 2:
        raise ConfigError(f"sources={' '.join(wish.sources)}: {len(wish.sources)} given; protocol {wish.protocol} compares "
                          "two; name the real set or the truth first, then what is judged")
    addresses = [uri if uri.startswith("models:/") else storage.absolute(uri) for uri in wish.sources]
    datasets = [is_dataset(uri) for uri in addresses]
    # A split that no source has is handed on all the same, so that opening the source says so.
    others: Split = wish.split if wish.split != "auto" and not any(datasets) else "all"
    sample = wish.sample
    if sample.context:
        sample = dataclasses.replace(sample, context=storage.absolute(sample.context))
    kinds = [kind_at(uri) for uri in addresses]
    require_drawing(wish, kinds)
    seeds = wish.images or (PUBLISHED_PATCHES if wish.protocol == "pfid_anyres" else 0)
    specs = [SourceSpec(uri=uri, split=wish.splits() if dataset or kind == "latents" else others, sample=sample,
                        first_seed=wish.first_seed, seeds=seeds, to_8_bits=wish.to_8_bits)
             for uri, dataset, kind in zip(addresses, datasets, kinds, strict=True)]
    return [specs[0], *(dataclasses.replace(spec, of=specs[0]) for spec in specs[1:])]


def require_drawing(wish: Wish, kinds: Sequence[str]) -> None:
    """Raise ConfigError where a wish says how seeds are drawn, or fields rendered, and no source has any."""
    given = [name for name, value in flat(wish.sample).items() if value != flat(SampleConfig())[name]]
    given += ["first_seed"] if wish.first_seed else []
    if "latent_diffusion" not in kinds and (lost := [name for name in given if name != "mode"]):
        raise ConfigError(f"{', '.join(lost)}: {' '.join(wish.sources)}: nothing there draws seeds; expected a checkpoint of "
                          "stage two; leave it out, or name one")
    given = ["mode"] * ("mode" in given) + ["to_8_bits"] * (wish.to_8_bits != "nearest")
    if given and not any(kinds):
        raise ConfigError(f"{', '.join(given)}: {' '.join(wish.sources)}: nothing there is rendered; expected a checkpoint or "
                          "latents; leave it out, or name one")


def low_side(wish: Wish, specs: Sequence[SourceSpec]) -> int:
    """The side that upscales begin from: given, or what the encoder of a checkpoint sees; 0 where nobody asks."""
    if not wish.upscales or wish.low_px:
        return wish.low_px
    if kind_at(specs[-1].uri) != "autoencoder":
        raise ConfigError(f"upscales={' '.join(map(str, wish.upscales))}: of what side? expected --low-px, or a checkpoint of "
                          "stage one, whose encoder's side it is; say --low-px")
    return encoder_side(checkpoint.load(resolve(specs[-1].uri)))


def is_dataset(uri: str) -> bool:
    root, number = split_address(uri)
    return number is not None or newest_number(root) is not None


def with_sides(protocol: Protocol, specs: Sequence[SourceSpec], wish: Wish, truth: Source | None) -> list[SourceSpec]:
    """The specs with the sides at which fields are rendered. Of consistency one for each of the wish's sizes."""
    if isinstance(protocol, Consistency):
        if not kind_at(specs[-1].uri):
            require(not wish.sizes, "sizes", wish.sizes, "folders of images have sides of their own; leave it out")
            return list(specs)
        require(len(specs) == 1 or kind_at(specs[-1].uri) == "autoencoder", "sources", wish.sources,
                "consistency compares an image with itself at other sizes; name the judged source alone")
        if len(wish.sizes) < 2:
            raise ConfigError(f"sizes={' '.join(map(str, wish.sizes)) or 'missing'}: consistency compares renders at two sides "
                              "at least; say --sizes 256 512 1024")
        return [dataclasses.replace(specs[-1], side=side) for side in sorted(set(wish.sizes))]
    through = max(protocol.sizes, default=0) if isinstance(protocol, Pairs) and protocol.resample == "bicubic" else 0
    if through and any(kind_at(spec.uri) == "latents" for spec in specs):
        raise ConfigError(f"sources={' '.join(wish.sources)}: latents were made of whole photos; super_resolution makes what "
                          "the encoder sees from each size anew; name the checkpoint")
    return [dataclasses.replace(spec, side=side_of(protocol, truth), through_px=through) if kind_at(spec.uri) else spec
            for spec in specs]


def side_of(protocol: Protocol, truth: Source | None) -> int:
    """The side at which a protocol wants fields rendered, the largest where it wants several; 0: that of the truth."""
    match protocol:
        case Pairs():
            return max(protocol.sizes, default=0)
        case Spectra():
            return protocol.crops.r
        case Distances(crops=OneCrop(r=r)):
            return r
        case Distances(crops=WholeImages(side=side)):
            return side or (truth.sides(0).short if truth else 0)
        case Distances(crops=RandomScales(r_max=r_max)):
            return r_max or max(truth.sides(index).short for index in range(len(truth))) if truth else r_max
    return 0


def default_out(specs: Sequence[SourceSpec]) -> str:
    """RUN/evaluations of the last checkpoint that lies in a run's folder; else the folder evaluations."""
    for spec in reversed(specs):
        if spec.uri.startswith("models:/") or not stage_at(spec.uri):
            continue
        run = storage.parent(storage.parent(checkpoint.load(spec.uri).uri))
        if storage.exists(storage.join(run, "run.json")):
            return storage.join(run, "evaluations")
    return storage.absolute("evaluations")


# ---------------------------------------------------------------- one evaluation


def evaluate(
    protocol: Protocol, specs: Sequence[SourceSpec], *, out: str, engine: Engine, cache: str = "", pictures: bool = True,
    network: FeatureNetwork | None = None, opened: dict[SourceSpec, Source] | None = None,
    networks: Mapping[NetworkConfig, FeatureNetwork] | None = None,
) -> tuple[str, Result]:
    """Make what is not made yet, write result.json below `out`; its address and the result. `opened`, `networks`: those that
    are open.

    Law: the result of `infd.evaluation.evaluate.evaluate` over the same sources, byte for byte on CPUs, however many workers.
    """
    opened = {} if opened is None else opened
    sources = sources_of(specs, out=out, engine=engine, opened=opened)
    if not isinstance(protocol, Consistency) and len(sources) != 2:
        raise EvaluationError(f"protocol {protocol.name}: {len(sources)} sources; expected two, the truth first; name both")
    found = network
    if found is None and isinstance(protocol, Distances):
        found = (networks or {}).get(protocol.network) or open_here(protocol.network, engine.device)
    scene = Scene(protocol=protocol, specs=tuple(map(pinned, specs, sources)), sources=sources, out=out, engine=engine,
                  pictures=pictures, network=found, given=network)
    result, where = made(scene, cache), storage.join(scene.folder, "result.json")
    result.write(where)
    return where, result


def pinned(spec: SourceSpec, source: Source) -> SourceSpec:
    """The spec with what its address means now, a snapshot, a step, files, so that workers open what this process saw."""
    of = spec.of
    if of is not None and isinstance(source, RenderedSource) and isinstance(source.fields, Reconstructed | Stored):
        of = pinned(of, source.fields.truth) if source.fields.truth else None
    listing = source.listing if isinstance(source, FolderSource) else ""
    return dataclasses.replace(spec, uri=source.uri, of=of, listing=listing)


def made(scene: Scene, cache: str) -> Result:
    match scene.protocol:
        case Distances() as protocol:
            return distances(scene, protocol, cache)
        case Spectra() as protocol:
            return spectra(scene, protocol)
        case protocol:
            return values(scene, protocol)


# ---------------------------------------------------------------- distances


def distances(scene: Scene, protocol: Distances, cache: str) -> Result:
    """All blocks of all seeds in one go, then the distances, for which the blocks are read again one by one."""
    a, b = scene.sources
    network = scene.network
    if network is None:
        raise AssertionError("distances without a network")
    plans = plans_of(protocol, scene.sources)
    for cuts in plans.values():
        library.require_counts(protocol, cuts, a, b)
    scene.do(units.latent_tasks(scene.sources))
    keep = bool({"kid", "precision_recall"} & set(protocol.metrics))
    blocks = Blocks(scene, protocol, network, cache)
    tasks = [task for cuts in plans.values() for index, side in enumerate(cuts) for task in blocks.tasks(index, side, keep)]
    scene.do([*tasks, *pictures_of(scene, next(iter(plans.values())))])

    def statistics(source: Source, cuts: Sequence[Cut], keep: bool) -> Statistics:
        return blocks.statistics(0 if source is a else 1, cuts, keep)

    given = library.choices(protocol) if scene.given is None else {
        name: value for name, value in library.choices(protocol).items() if not name.startswith("network.")}
    result = library.distances(protocol, a, b, network=network, given=given, collect=statistics)
    return dataclasses.replace(result, choices=result.choices | {"device": scene.engine.device})


def pictures_of(scene: Scene, cuts: Plan) -> list[Task]:
    """A task of pictures of these cuts, beside the blocks; none where none are wanted."""
    return [picture_task(scene.folder, (cuts.a, cuts.b), (), {})] if scene.pictures else []


@dataclass(frozen=True)
class Blocks:
    """The blocks of features of an evaluation, and where whole sets are kept by content for the next one (`cache`)."""

    scene: Scene
    protocol: Distances
    network: FeatureNetwork
    cache: str

    def key(self, index: int, cuts: Sequence[Cut]) -> str:
        there = dataclasses.replace(self.network, device=self.scene.engine.device)
        return collect.cache_key(self.scene.sources[index], cuts, there, batch=self.protocol.batch)

    def cached(self, index: int, key: str) -> tuple[str, str]:
        """Addresses of moments and features in the cache; "" of a side that has none."""
        if not self.cache or index:
            return "", ""
        return (storage.join(self.cache, f"{key}.moments.safetensors"), storage.join(self.cache, f"{key}.features.safetensors"))

    def whole(self, index: int, key: str, keep: bool) -> bool:
        """Whether the cache has the set already."""
        where, beside = self.cached(index, key)
        return bool(where) and storage.exists(where) and (not keep or storage.exists(beside))

    def tasks(self, index: int, cuts: Sequence[Cut], keep: bool) -> list[Task]:
        key = self.key(index, cuts)
        return [] if self.whole(index, key, keep) else units.feature_tasks(index, key, cuts, self.scene.work)

    def statistics(self, index: int, cuts: Sequence[Cut], keep: bool) -> Statistics:
        """Of finished blocks, one in memory at a time unless their features are wanted; in order, so to the same bits."""
        key = self.key(index, cuts)
        source, (where, beside) = self.scene.sources[index], self.cached(index, key)
        if self.whole(index, key, keep):
            return Statistics(moments.from_bytes(storage.read_bytes(where), name=where),
                              collect.load_features(beside) if keep else None)
        summed, kept = Moments.empty(self.network.dim), []
        for uri in units.block_uris("features", key, len(cuts), self.scene.work):
            found = units.read_features(uri)
            summed = summed + Moments.of(found)
            if keep:
                kept.append(found)
        made = Statistics(summed, np.concatenate(kept) if keep else None)
        if where:
            collect.keep_at(where, beside, made, source, self.network)
        return made


def open_here(network: NetworkConfig, device: str) -> FeatureNetwork:
    """The network in this process, which needs its size, name and hash. Raises WeightsError that offers others."""
    try:
        return open_network(network, device=device if torch.cuda.is_available() else "cpu")
    except WeightsError as error:
        raise WeightsError(f"{error} {others(network.name)}") from error


def others(wanted: str) -> str:
    """The networks whose weights lie here, or how to get one."""
    names = [name for name in STATES if name not in (wanted, INCEPTION)]
    here = [name for name in names if weights.check(STATES[name]).state == "ok"]
    if here:
        return (f"Networks at hand: {', '.join(here)}. --network {here[0]} gives frechet[{here[0]}], which is never called FID "
                "and compares with nothing published")
    return (f"No network is at hand; python jobs/weights.py get {names[0]} gets one, whose distances are frechet[{names[0]}] "
            "and never FID")


# ---------------------------------------------------------------- spectra, pairs, fields


def spectra(scene: Scene, protocol: Spectra) -> Result:
    a, b = scene.sources
    cuts = library.spectra_plan(protocol, a, b)
    scene.do(units.latent_tasks(scene.sources))
    keys = [block_key(scene, {"side": source.fingerprint(), "cuts": [list(cut) for cut in side]})
            for source, side in zip((a, b), cuts, strict=True)]
    tasks = [task for index, (key, side) in enumerate(zip(keys, cuts, strict=True))
             for task in units.spectrum_tasks(index, key, side, protocol, scene.work)]
    scene.do([*tasks, *pictures_of(scene, cuts)])
    side = protocol.crops.p
    sums = [sum((units.read_spectrum(uri, side) for uri in units.block_uris("spectrum", key, len(cut), scene.work)),
                Spectrum.empty(side)) for key, cut in zip(keys, cuts, strict=True)]
    return library.spectra_result(protocol, a, b, sums[0], sums[1])


def values(scene: Scene, protocol: Pairs | Consistency) -> Result:
    """Metrics of pairs or fields, some a unit; then pictures, of which the worst and the best must be known."""
    if isinstance(protocol, Consistency):
        couples = library.matched_fields(protocol, scene.sources)
    else:
        couples = library.matched(scene.sources, protocol.count)
    lpips = library.open_lpips(protocol, device="cpu") if isinstance(protocol, Pairs) else {}
    scene.do(units.latent_tasks(scene.sources))
    key = block_key(scene, {"sources": [source.fingerprint() for source in scene.sources],
                            "lpips": {name: one.sha256 for name, one in lpips.items()}, "couples": couples})
    blocks = [couples[start:start + PAIRS_A_BLOCK] for start in range(0, len(couples), PAIRS_A_BLOCK)]
    tasks: list[Task] = [
        {"kind": "values", "couples": block, "out": storage.join(scene.work, f"values-{key[:32]}-{k:06d}.json")}
        for k, block in enumerate(blocks)]
    scene.do(tasks)
    found: library.Values = {}
    for task in tasks:
        for name, some in units.read_values(task["out"]).items():
            found.setdefault(name, []).extend(some)
    if isinstance(protocol, Consistency):
        result = library.consistency_result(protocol, scene.sources, couples, found)
    else:
        a, b = scene.sources
        result = library.pairs_result(protocol, a, b, couples, found, lpips=lpips, device=scene.engine.device)
    if scene.pictures:
        scene.do([picture_task(scene.folder, None, couples, ranking(result, protocol))], "blocks of pictures")
    return result


def block_key(scene: Scene, about: dict[str, Any]) -> str:
    """sha256 over all that a block's bytes depend on."""
    facts = {**about, "choices": library.choices(scene.protocol), "device": scene.engine.device,
             "versions": collect.versions(), "format": collect.FORMAT}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- text


def table(results: Sequence[Result]) -> str:
    """A line for each figure, with its standard error, or its spread over seeds or images; then what a reader must know."""
    rows = [("metric", "value", "±", "better", "over")]
    for result in results:
        rows += [(one.name, f"{one.value:.6g}", about(one), one.better, counted(result, one)) for one in result.metrics]
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return "\n".join([table_text(rows, left=(0, 3, 4)), *(f"note: {note}" for note in notes)])


def about(one: Metric) -> str:
    if one.standard_error is not None:
        return f"{one.standard_error:.2g} standard error"
    return f"{one.spread:.2g} over {one.over}" if one.spread is not None else ""


def counted(result: Result, one: Metric) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in result.counts.items())
    return counts + (f"; {len(one.values)} seeds" if one.over == "seeds" and len(one.values) > 1 else "")
