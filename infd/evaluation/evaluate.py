"""Carry out a protocol over image sources, in this process: `evaluate(protocol, a, b)` gives a Result.

The pieces are fit for many workers too: a plan of cuts (crops.py), blocks of features and moments that add up (collect.py),
`pair_values` and `field_values` of any part of the pairs or fields, and for each kind a function that makes the Result.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infd import config_form
from infd.evaluation import pixels
from infd.evaluation.collect import Statistics, blocks, patches, statistics, versions
from infd.evaluation.consistency import mean_shift, require_square, self_ssim
from infd.evaluation.crops import Cut, Plan, plan
from infd.evaluation.errors import EvaluationError, require_images
from infd.evaluation.features import INCEPTION, FeatureNetwork, open_network
from infd.evaluation.frechet import frechet
from infd.evaluation.kid import kid
from infd.evaluation.precision_recall import precision_recall
from infd.evaluation.protocols import Consistency, Distances, PairMetric, Pairs, Protocol, Spectra
from infd.evaluation.result import Metric, Result, metric
from infd.evaluation.sources import Resample, Source, open_source, square
from infd.evaluation.spectra import Spectrum, distance_db

Collect = Callable[[Source, Sequence[Cut], bool], Statistics]
"""The statistics of the cuts of a source; the flag: with the features themselves."""
Values = dict[str, list[float]]
"""Numbers of each metric, in the order of the pairs or fields. Those of parts add up by appending."""
Couples = Sequence[tuple[str, tuple[int, ...]]]
"""(name, index in each source) of images that belong together."""


def evaluate(
    protocol: Protocol, *sources: Source | str, cache: str = "", device: str = "cpu", network: FeatureNetwork | None = None,
) -> Result:
    """The figures of a protocol. Sources: the real set or the truth first, then what is judged; addresses or opened ones.

    cache: folder or prefix where statistics of the first source are kept by content, for distances. network: one that is
    open already, in place of the protocol's. Raises EvaluationError naming file and rule, PhotoError a file that cannot be
    decoded, WeightsError absent weights. Law: the same inputs give the same numbers, to the last digit on one machine.
    """
    opened = [open_source(source) if isinstance(source, str) else source for source in sources]
    if not isinstance(protocol, Consistency) and len(opened) != 2:
        raise EvaluationError(f"protocol {protocol.name}: {len(opened)} sources; expected two, the truth first; name both")
    match protocol:
        case Distances():
            given = choices(protocol) if network is None else {
                name: value for name, value in choices(protocol).items() if not name.startswith("network.")}
            chosen = network or open_network(protocol.network, device=device)

            def collect(source: Source, cuts: Sequence[Cut], keep: bool) -> Statistics:
                return statistics(source, cuts, chosen, batch=protocol.batch, keep=keep,
                                  cache=cache if source is opened[0] else "")

            return distances(protocol, *opened, network=chosen, given=given, collect=collect)
        case Pairs():
            return pairs(protocol, *opened, device=device)
        case Consistency():
            return consistency(protocol, opened)
        case Spectra():
            return spectra(protocol, *opened)


def choices(protocol: Protocol) -> dict[str, Any]:
    """Every field that a number depends on, by dotted name, and the kind of crops.

    Of a network only its name and place, unless it is a file of the user's own: what the others do stands in the result's
    `networks`.
    """
    found = config_form.flat(protocol)
    if isinstance(protocol, Distances) and protocol.network.name != "torchscript":
        found = {name: value for name, value in found.items()
                 if not name.startswith("network.") or name in ("network.name", "network.weights")}
    kind = {"crops.kind": type(protocol.crops).__name__} if isinstance(protocol, Distances | Spectra) else {}
    return found | kind


# ---------------------------------------------------------------- distances


def distances(
    protocol: Distances, a: Source, b: Source, *, network: FeatureNetwork, given: dict[str, Any], collect: Collect,
) -> Result:
    """Distances between the features of two sets, for each seed. `given`: the choices to report."""
    found: dict[str, list[float]] = {}
    errors: dict[str, float] = {}
    counts, notes = (0, 0), ()
    for seed in protocol.seeds:
        cuts = plan(protocol.crops, a, b, seed=seed, count_a=protocol.count_a, count_b=protocol.count_b)
        counts = require_counts(protocol, cuts, a, b)
        keep = bool({"kid", "precision_recall"} & set(protocol.metrics))
        sides = [collect(source, cut, keep) for source, cut in ((a, cuts.a), (b, cuts.b))]
        for name, value in compared(protocol, sides[0], sides[1], network, errors):
            found.setdefault(name, []).append(value)
        notes = warnings(counts, network, protocol)
    return Result(
        protocol=protocol.name, choices=given | {"device": network.device}, networks=(network.describe(),),
        metrics=tuple(metric(name, values, better="higher" if name.startswith(("precision", "recall")) else "lower",
                             standard_error=errors.get(name) if len(values) == 1 else None)
                      for name, values in found.items()),
        sources=(a.describe(), b.describe()), counts={"a": counts[0], "b": counts[1]}, notes=notes, versions=versions())


def compared(
    protocol: Distances, a: Statistics, b: Statistics, network: FeatureNetwork, errors: dict[str, float],
) -> Iterator[tuple[str, float]]:
    """(name, value) of each metric; standard errors go into `errors`."""
    for one in protocol.metrics:
        if one == "frechet":
            yield metric_name("frechet", protocol, network.name), frechet(a.moments, b.moments, ddof=protocol.ddof)
            continue
        if a.features is None or b.features is None:
            raise ValueError(f"{one}: features were not kept")
        if one == "kid":
            name, value = metric_name("kid", protocol, network.name), kid(a.features, b.features, protocol.kid)
            if value.standard_error is not None:
                errors[name] = value.standard_error
            yield name, value.mean
        else:
            shares = precision_recall(a.features, b.features, protocol.precision_recall, device=network.device)
            yield metric_name("precision", protocol, network.name), shares.precision
            yield metric_name("recall", protocol, network.name), shares.recall


def metric_name(metric: str, protocol: Distances, network: str) -> str:
    """fid, pfid_256/1024, kid_…: with Inception's features; frechet_256/1024[efficientnet-lite0]: with any others.

    Precision and recall always name the network: papers take VGG16's for them. Law: FID stands for Inception's alone.
    """
    suffix = protocol.crops.suffix
    if network != INCEPTION or metric in ("precision", "recall"):
        return f"{metric}{suffix}[{network}]"
    if metric == "frechet":
        return f"fid{suffix}" if protocol.name == "fid" else f"pfid{suffix}"
    return f"{metric}{suffix}"


def require_counts(protocol: Distances, cuts: Plan, a: Source, b: Source) -> tuple[int, int]:
    """Numbers of cuts. Raises EvaluationError: fewer than the protocol needs."""
    least = protocol.min_images
    for source, cut in ((a, cuts.a), (b, cuts.b)):
        require_images(len(cut), least, what=source.uri, rule=f"protocol {protocol.name} (min_images)")
        if "kid" in protocol.metrics:
            require_images(len(cut), protocol.kid.subset_size, what=source.uri, rule="kid.subset_size (--kid-subset-size)")
        if "precision_recall" in protocol.metrics:
            require_images(len(cut), protocol.precision_recall.k + 1, what=source.uri, rule="precision_recall.k")
    return len(cuts.a), len(cuts.b)


def warnings(counts: tuple[int, int], network: FeatureNetwork, protocol: Distances) -> tuple[str, ...]:
    """What a reader must know of small sets."""
    if min(counts) > network.dim or "frechet" not in protocol.metrics:
        return ()
    return (f"{min(counts)} images for {network.dim} features: a covariance is singular and the Fréchet distance far above its "
            "limit; compare only figures of equal counts, or take the kernel distance",)


# ---------------------------------------------------------------- pairs


def matched(sources: Sequence[Source], count: int) -> list[tuple[str, tuple[int, ...]]]:
    """(name without ending, index in each source), sorted by name; by place where all have the same names in the same order,
    as a dataset and its reconstructions, in which names may repeat. Raises EvaluationError naming one that lacks a partner.
    """
    names = [[source.name(index) for index in range(len(source))] for source in sources]
    if all(one == names[0] for one in names):
        require_images(len(names[0]), count, what=sources[0].uri, rule="the count that was asked for")
        places = sorted((name.rsplit(".", 1)[0], index) for index, name in enumerate(names[0]))
        return [(stem, (index,) * len(sources)) for stem, index in places[:count or None]]
    return matched_by_name(sources, count)


def matched_by_name(sources: Sequence[Source], count: int) -> list[tuple[str, tuple[int, ...]]]:
    tables: list[dict[str, int]] = []
    for source in sources:
        table: dict[str, int] = {}
        for index in range(len(source)):
            stem = source.name(index).rsplit(".", 1)[0]
            if stem in table:
                raise EvaluationError(f"{source.address(index)}: a second image of the name {stem}; names without their ending "
                                      "match pairs; rename one")
            table[stem] = index
        tables.append(table)
    for first, one in ((0, 1), (1, 0)) if len(tables) == 2 else [(0, k) for k in range(1, len(tables))]:
        lacking = sorted(set(tables[first]) - set(tables[one]))
        if lacking:
            raise EvaluationError(f"{sources[first].address(tables[first][lacking[0]])}: no image {lacking[0]}.* in "
                                  f"{sources[one].uri} ({len(lacking)} such); every image needs a partner; complete the set, "
                                  "or take the image away")
    names = sorted(tables[0])
    require_images(len(names), count, what=sources[0].uri, rule="the count that was asked for")
    return [(name, tuple(table[name] for table in tables)) for name in names[:count or None]]


def pairs(protocol: Pairs, a: Source, b: Source, *, device: str) -> Result:
    """Nearness of each image of b to its namesake in a."""
    lpips = open_lpips(protocol, device=device)
    couples = matched((a, b), protocol.count)
    return pairs_result(protocol, a, b, couples, pair_values(protocol, a, b, couples, lpips), lpips=lpips, device=device)


def open_lpips(protocol: Pairs, *, device: str) -> dict[str, pixels.LpipsMetric]:
    """The LPIPS metrics that a protocol has, by name. Raises WeightsError."""
    return {name: pixels.LpipsMetric("vgg" if name == "lpips_vgg" else "alex", root=protocol.weights, device=device)
            for name in protocol.metrics if name.startswith("lpips")}


def pair_values(protocol: Pairs, a: Source, b: Source, couples: Couples, lpips: Mapping[str, pixels.LpipsMetric]) -> Values:
    """Each metric of some pairs; PSNR as mean squared errors, because those may be pooled. Keys: METRIC@SIZE or METRIC."""
    found: Values = {}
    for _, (one, other) in couples:
        for size in protocol.sizes or (0,):
            truth, image = (sized(source, index, size, protocol.resample) for source, index in ((a, one), (b, other)))
            if truth.shape != image.shape:
                raise EvaluationError(
                    f"{b.address(other)}: {image.shape[1]}x{image.shape[0]}; {a.address(one)} is {truth.shape[1]}x"
                    f"{truth.shape[0]}; pairs must have one size; set sizes, to which both are brought")
            for name in protocol.metrics:
                found.setdefault(pair_key(name, size), []).append(score(name, truth, image, protocol, lpips))
    return found


def pair_key(name: PairMetric, size: int) -> str:
    return f"{name}@{size}" if size else name


def pairs_result(
    protocol: Pairs, a: Source, b: Source, couples: Couples, found: Values, *, lpips: Mapping[str, pixels.LpipsMetric],
    device: str,
) -> Result:
    """The Result of the values of all pairs."""
    equal = sum(value == 0 for key, values in found.items() if key.split("@")[0] == "psnr" for value in values)
    return Result(
        protocol=protocol.name, choices=choices(protocol) | {"device": device},
        metrics=tuple(pair_metric(key, values, protocol) for key, values in found.items()),
        sources=(a.describe(), b.describe()), counts={"pairs": len(couples)}, items=tuple(name for name, _ in couples),
        networks=tuple({"name": name, "weights_sha256": one.sha256, "input": "x / 127.5 - 1"} for name, one in lpips.items()),
        notes=(f"{equal} compared images are equal: their PSNR is infinite and does not count",) if equal else (),
        versions=versions())


def sized(source: Source, index: int, size: int, resample: Resample) -> np.ndarray:
    """The centre square at a side, or the image as it is (0)."""
    return square(source, index, size, resample=resample) if size else source.read(index)


def score(
    name: PairMetric, truth: np.ndarray, image: np.ndarray, protocol: Pairs, lpips: Mapping[str, pixels.LpipsMetric],
) -> float:
    """One metric of one pair; of PSNR the mean squared error, because errors may be pooled."""
    match name:
        case "psnr":
            return pixels.mse(truth, image, border_px=protocol.border_px)
        case "psnr_y":
            return pixels.mse(pixels.luma(truth), pixels.luma(image), border_px=protocol.border_px)
        case "ssim":
            return pixels.ssim(truth, image)
        case "ssim_y":
            return pixels.ssim_y(truth, image)
        case _:
            return lpips[name](truth, image)


def pair_metric(key: str, values: list[float], protocol: Pairs) -> Metric:
    """The figure of one metric at one side."""
    pool = protocol.psnr_pool
    if key.startswith("psnr"):
        values = [pixels.psnr_db(float(np.mean(values[start:start + pool]))) for start in range(0, len(values), pool)]
    return metric(key, values, better="lower" if key.startswith("lpips") else "higher",
                  over="pools" if key.startswith("psnr") and pool > 1 else "images")


# ---------------------------------------------------------------- one set at several sides


def consistency(protocol: Consistency, sources: Sequence[Source]) -> Result:
    """Means over fields of the SelfSSIM matrix and of the shift from each side to its double."""
    fields = matched_fields(protocol, sources)
    return consistency_result(protocol, sources, fields, field_values(protocol, sources, fields))


def matched_fields(protocol: Consistency, sources: Sequence[Source]) -> Couples:
    """The fields that all sources render. Raises EvaluationError: fewer than two sources, or two of one side."""
    if len(sources) < 2:
        raise EvaluationError(f"protocol {protocol.name}: {len(sources)} source; expected one a side, two at least; name more")
    fields = matched(sources, protocol.count)
    sides = sides_of(sources, fields)
    if len(set(sides)) != len(sides):
        raise EvaluationError(f"protocol {protocol.name}: renders of sides {sides}; expected a side of its own in each source; "
                              "name one source a side")
    return fields


def sides_of(sources: Sequence[Source], fields: Couples) -> list[int]:
    """The side of each source's renders, by that of its first field."""
    return [source.sides(index).width for source, index in zip(sources, fields[0][1], strict=True)]


def field_values(protocol: Consistency, sources: Sequence[Source], fields: Couples) -> Values:
    """Each metric of some fields. Raises EvaluationError naming a render of another side than its source's first."""
    found: Values = {}
    sides = sides_of(sources, fields)
    for _, indices in fields:
        renders: dict[int, np.ndarray] = {}
        for source, index, side in zip(sources, indices, sides, strict=True):
            renders[side] = source.read(index)
            try:
                require_square(renders[side], side)
            except EvaluationError as error:
                raise EvaluationError(f"{source.address(index)}: {error}") from error
        for name, value in field_consistency(protocol, renders):
            found.setdefault(name, []).append(value)
    return found


def consistency_result(protocol: Consistency, sources: Sequence[Source], fields: Couples, found: Values) -> Result:
    """The Result of the values of all fields."""
    return Result(
        protocol=protocol.name, choices=choices(protocol), items=tuple(name for name, _ in fields), versions=versions(),
        metrics=tuple(metric(name, values, over="images", better="lower" if name.startswith("mean_shift") else "higher")
                      for name, values in found.items()),
        sources=tuple(source.describe() for source in sources), counts={"fields": len(fields), "sides": len(sources)})


def field_consistency(protocol: Consistency, renders: Mapping[int, np.ndarray]) -> Iterator[tuple[str, float]]:
    """(name, value): self_ssim[how]_ROW/COLUMN off the diagonal, and mean_shift_SIDE in levels of 255."""
    sides = sorted(renders)
    for how in protocol.resizes:
        matrix = self_ssim(renders, how=how)
        for row, side in enumerate(sides):
            for column, other in enumerate(sides):
                if row != column:
                    yield f"self_ssim[{how}]_{side}/{other}", float(matrix[row, column])
    for side in sides:
        if 2 * side in renders:
            yield f"mean_shift_{side}", mean_shift(renders[side], renders[2 * side])


# ---------------------------------------------------------------- spectra


def spectra(protocol: Spectra, a: Source, b: Source) -> Result:
    """Mean power spectra of both sets, and how far apart they are."""
    cuts = spectra_plan(protocol, a, b)
    side = protocol.crops.p
    return spectra_result(protocol, a, b, spectrum(a, cuts.a, side=side), spectrum(b, cuts.b, side=side))


def spectra_plan(protocol: Spectra, a: Source, b: Source) -> Plan:
    return plan(protocol.crops, a, b, seed=protocol.seed, count_a=protocol.count_a, count_b=protocol.count_b)


def spectrum(source: Source, cuts: Sequence[Cut], *, side: int) -> Spectrum:
    """Of some cuts, each side x side: block by block, so that blocks made elsewhere add up to the same bits."""
    return sum((block_spectrum(source, block, side=side) for block in blocks(cuts)), Spectrum.empty(side))


def block_spectrum(source: Source, cuts: Sequence[Cut], *, side: int) -> Spectrum:
    return sum((Spectrum.of(patch) for patch in patches(source, cuts)), Spectrum.empty(side))


def spectra_result(protocol: Spectra, a: Source, b: Source, of_a: Spectrum, of_b: Spectrum) -> Result:
    """The Result of the spectra of all cuts."""
    found = distance_db(of_a, of_b)
    return Result(
        protocol=protocol.name, choices=choices(protocol), versions=versions(),
        metrics=(metric(f"spectrum_db{protocol.crops.suffix}", [found], better="lower"),),
        sources=(a.describe(), b.describe()), counts={"a": of_a.count, "b": of_b.count},
        curves={"cycles_per_image": tuple(map(float, range(of_a.side // 2 + 1))), "power_a": tuple(of_a.power.tolist()),
                "power_b": tuple(of_b.power.tolist())},
        notes=() if math.isfinite(found) else ("the distance is not finite",))
