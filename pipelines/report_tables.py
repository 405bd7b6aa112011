"""Tables of a report: rows are what was judged, columns figures made under the same conditions, in the papers' order."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from infd.config_form import OPERATIONAL
from infd.evaluation.result import Metric, Result
from pipelines.published import Published
from pipelines.runs import Facts

ORDER = ("fid", "pfid", "pfid_random", "frechet", "kid", "precision", "recall", "spectrum_db", "psnr", "psnr_y", "ssim",
         "ssim_y", "lpips_vgg", "lpips_alex", "val/loss", "val/psnr", "val/lpips")
"""Kinds of figures from left to right."""
TITLES = {"fid": "FID", "pfid": "pFID", "pfid_random": "pFID random", "frechet": "Fréchet", "kid": "KID",
          "precision": "precision", "recall": "recall", "spectrum_db": "spectrum", "psnr": "PSNR", "psnr_y": "PSNR Y",
          "ssim": "SSIM", "ssim_y": "SSIM Y", "lpips_vgg": "LPIPS VGG", "lpips_alex": "LPIPS Alex",
          "val/loss": "training's val loss", "val/psnr": "training's val PSNR", "val/lpips": "training's val LPIPS"}
DECIBELS = ("spectrum_db", "psnr", "psnr_y", "val/psnr")
VALIDATION: dict[str, Literal["lower", "higher"]] = {"val/loss": "lower", "val/psnr": "higher", "val/lpips": "lower"}
CONSISTENCY = ("self_ssim", "mean_shift")
NAME = re.compile(r"(?P<kind>[a-z_/]+?)(_(?P<place>\d+(/\d+)?|p\d+min\d+max\d+))?(\[(?P<label>[^\]]+)\])?(@(?P<side>\d+))?")
PLACES = ("device", "network.weights", "weights")
"""Choices that do not make figures incomparable."""
COUNTED = ("count", "count_a", "count_b", "min_images", "metrics", "precision_recall.block")
"""Nor do these: what was asked for, where the counts tell what was taken, and each metric has a column."""


class Superseded(NamedTuple):
    """A result that is not shown, because another of the same row has the same conditions."""

    folder: str
    result: Result
    by: str
    """The folder of the one that is shown."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was judged: a checkpoint of a run, or any set of images, of one content."""

    name: str
    address: str
    run: Facts | None = None
    step: int | None = None
    results: tuple[Result, ...] = ()
    folders: tuple[str, ...] = ()
    """Where each result lies, with its pictures."""
    content: str = ""
    """Hash of the weights or files that were judged; empty: nothing was."""
    stale: bool = False
    """The checkpoint at the address is another one today. Such a row has no run: what the run says now is not of it."""
    superseded: tuple[Superseded, ...] = ()

    @property
    def preset(self) -> str:
        return self.run.record["preset"] if self.run else ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure under one set of conditions."""

    metric: str
    title: str
    better: Literal["lower", "higher", ""]
    condition: str
    """A hash of all that must be equal for two values to be compared; empty: published figures alone."""


FAMILIES = {"Distances between sets": ("fid", "pfid", "pfid_random", "frechet", "kid", "precision", "recall", "spectrum_db"),
            "Pairs": ("psnr", "psnr_y", "ssim", "ssim_y", "lpips_vgg", "lpips_alex"),
            "Training's own validation": tuple(VALIDATION)}
"""Kinds of figures that stand in one table."""


@dataclass(frozen=True)
class Table:
    """`cells[row][column]`, and which of ours is best in each column."""

    rows: list[Row]
    columns: list[Column]
    cells: list[list[Metric | None]]
    best: list[int | None]
    """Of each column the row; None where fewer than two have it, or where two share it."""
    even: list[bool]
    """Of each column whether the best two differ by less than the error of their difference, where that is known."""
    printed: list[Published] = field(default_factory=list)


# ---------------------------------------------------------------- columns


def condition_of(result: Result) -> str:
    """Law: two results have the same one where their figures may be compared: choices, truth, networks, counts."""
    choices = {name: value for name, value in result.choices.items() if name not in (*PLACES, *COUNTED)}
    about = [result.protocol, choices, compared_with(result), result.networks, result.counts]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def compared_with(result: Result) -> Any:
    """The content of the truth; of fields at several sides, which have none, the sides and what the fields stand for, or the
    content of all folders but the judged one."""
    if "fields" in result.counts:
        *others, last = [[source.get(name) for name in ("side", "of", "seeds")] if "side" in source else source["fingerprint"]
                         for source in result.sources]
        return [*others, last if isinstance(last, list) else ""]
    return result.sources[0]["fingerprint"] if len(result.sources) == 2 else ""


def drawn(judged: dict[str, Any]) -> dict[str, Any]:
    """How the images of a source were drawn: with its address and content, what makes a row of its own."""
    return {"sampling": judged.get("sampling"), "mode": judged.get("mode"), "to_8_bits": judged.get("to_8_bits", "nearest"),
            "first_seed": str(judged.get("seeds", "")).split(" ")[0]}


def condition_text(result: Result) -> str:
    """Against what, and over how many."""
    counts = result.counts
    if "pairs" in counts:
        over = f"{counts['pairs']:,} pairs"
    elif "crops" in counts:
        over = f"{counts['crops']:,} crops, during training"
    elif "a" in counts:
        over = f"{counts['a']:,} real, {counts['b']:,} judged"
    else:
        return f"{counts.get('fields', 0):,} fields, each rendered at {len(result.sources)} sides"
    truth = result.sources[0]
    split = f" ({truth['split']})" if truth.get("split", "all") != "all" else ""
    seeds = result.choices.get("seeds")
    loss = ", ".join(f"{name} {value}" for name, value in result.choices.items() if name.startswith("loss."))
    crops = f"; crop seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list | tuple) and len(seeds) > 1 else ""
    pool = result.choices.get("psnr_pool", 1)
    pooled = f"; PSNR of errors averaged over {pool} pairs" if pool > 1 else ""
    return f"against {truth['uri']}{split}; {over}{crops}{pooled}" + (f"; {loss}" if loss else "")


def column_of(result: Result, one: Metric) -> Column:
    return Column(metric=one.name, title=title(one.name), better=one.better, condition=condition_of(result))


def title(name: str) -> str:
    """As papers write it: pfid_256/1024 -> pFID 256/1K."""
    found = NAME.fullmatch(name)
    if found is None or found["kind"] not in TITLES:
        return name
    place = found["place"] or ""
    if "/" in place:
        place = "/".join(f"{int(side) // 1024}K" if int(side) % 1024 == 0 else side for side in place.split("/"))
    label = f"[{found['label']}]" if found["label"] else ""
    side = f"at {found['side']}" if found["side"] else ""
    words = " ".join(part for part in (TITLES[found["kind"]], place, label, side) if part)
    return f"{words}, dB" if found["kind"] in DECIBELS else words


def order_of(column: Column) -> tuple[Any, ...]:
    """By kind, then R, then P: 256/256, 256/1K, 512/1K, 1K/1K; figures with Inception's features before others."""
    found = NAME.fullmatch(column.metric)
    if found is None or found["kind"] not in ORDER:
        return len(ORDER), "", 0, 0, column.metric, column.condition
    p, _, r = (found["place"] or "0").partition("/")
    sides = (int(r or 0), int(p)) if p.isdigit() else (0, 0)
    return ORDER.index(found["kind"]), found["label"] or "", *(sides if not found["side"] else (int(found["side"]), 0)), \
        column.metric, column.condition


def kind_of(metric: str) -> str:
    """psnr of psnr@256, pfid of pfid_256/1024; the name itself of others."""
    found = NAME.fullmatch(metric)
    return found["kind"] if found else metric


def families(columns: Sequence[Column]) -> dict[str, list[int]]:
    """Places of the columns of each family, in their order; kinds that none names are "Others"."""
    found: dict[str, list[int]] = {}
    for place, column in enumerate(columns):
        kind = kind_of(column.metric)
        found.setdefault(next((name for name, kinds in FAMILIES.items() if kind in kinds), "Others"), []).append(place)
    return found


# ---------------------------------------------------------------- the table


def table_of(rows: Sequence[Row], printed: Sequence[Published] = ()) -> Table:
    """All figures but those of consistency, which are matrices; columns of published figures that we lack are added."""
    columns = {(column.metric, column.condition): column for row in rows for result, one in figures(row)
               for column in [column_of(result, one)]}
    ours = {metric for metric, _ in columns}
    for name in dict.fromkeys(name for one in printed for name in one.values if name not in ours):
        columns[(name, "")] = Column(metric=name, title=title(name), better="lower", condition="")
    ordered = sorted(columns.values(), key=order_of)
    cells = [[cell(row, column) for column in ordered] for row in rows]
    best = [best_of([line[k] for line in cells], column.better) for k, column in enumerate(ordered)]
    even = [found is not None and within_error(*first_two([line[k] for line in cells], column.better))
            for k, (found, column) in enumerate(zip(best, ordered, strict=True))]
    return Table(list(rows), ordered, cells, best, even, list(printed))


def figures(row: Row) -> Iterator[tuple[Result, Metric]]:
    for result in (*row.results, *validation(row)):
        for one in result.metrics:
            if not one.name.startswith(CONSISTENCY):
                yield result, one


def validation(row: Row) -> list[Result]:
    """What training found of the run's best checkpoint, where that is the one judged, in the form of a result.

    Only runs of one snapshot, with the same crops and losses, share the condition; of stage two those of the same latents.
    """
    if row.run is None or row.run.best is None or row.step != row.run.best.step:
        return []
    metrics, config = row.run.best.meta["metrics"], config_of(row.run)
    snapshot, latents = row.run.record["snapshot"], row.run.record["latents"]
    truth = {"uri": latents["address"] if latents else snapshot, "split": "val",
             "fingerprint": latents["sha256"] if latents else snapshot}
    return [Result(protocol="validation", choices=validated_with(config, name), sources=(truth, truth),
                   metrics=(Metric(name=name, value=float(metrics[name]), values=(float(metrics[name]),), better=better),),
                   counts={"crops": int(config.get("loop.validate_samples", 0))})
            for name, better in VALIDATION.items() if name in metrics]


def validated_with(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of a flat config that a validation metric depends on besides the weights that it judges.

    Law: another value of one of them gives another figure of the same weights; of any other field the same. crop.lowres_px,
    loss.query_pad_px and model.… are of what is judged. loop.seed, the key of the crops, is left out: figures are pooled over
    seeds.
    """
    names = ["loop.validate_samples", *(f"crop.{own}" for own in ("patch_px", "r_min", "r_max", "view"))]
    if name.startswith("val/loss"):
        names += ["loss.l1", "loss.lpips", *(["loss.lpips_net"] if config.get("loss.lpips") else [])]
        noise = ("flow_mean", "flow_std") if config.get("diffusion.objective") == "flow" else (
            "schedule", "beta_from", "beta_to", "timesteps", "min_snr_gamma")
        names += [f"diffusion.{own}" for own in ("objective", "scale", *noise)]
    elif name.startswith("val/lpips"):
        names.append("loss.lpips_net")
    return {key: config[key] for key in names if key in config}


def cell(row: Row, column: Column) -> Metric | None:
    """The figure of a row; the first where there are several of equal conditions."""
    return next((one for result, one in figures(row)
                 if one.name == column.metric and condition_of(result) == column.condition), None)


def best_of(found: Sequence[Metric | None], better: str) -> int | None:
    """The row with the best value. Law: None where fewer than two rows have one, or where the best two are equal."""
    have = [(one.value, index) for index, one in enumerate(found) if one is not None]
    if len(have) < 2 or not better:
        return None
    have.sort(reverse=better == "higher")
    return have[0][1] if have[0][0] != have[1][0] else None


def first_two(found: Sequence[Metric | None], better: str) -> tuple[Metric, Metric]:
    """The best and the second best value of two or more."""
    one, other = sorted((one for one in found if one is not None), key=lambda one: one.value, reverse=better == "higher")[:2]
    return one, other


def within_error(one: Metric, other: Metric) -> bool:
    """Whether two values differ by less than twice the error of their difference, where that is known."""
    pairs = [step for step in image_by_image(one, other) if math.isfinite(step)]
    if len(pairs) > 1:
        gap, error = abs(fmean(pairs)), stdev(pairs) / len(pairs) ** 0.5
    else:
        gap, error = abs(one.value - other.value), max(error_of(one), error_of(other))
    return bool(error) and gap < 2 * error


def image_by_image(one: Metric, other: Metric) -> list[float]:
    """The differences of two figures over the same images, or the same pools of them; [] of figures that are means of neither.

    Equal columns have equal images in equal order, and so equal pools. Images that both reproduce to the bit say nothing.
    """
    if one.over == "seeds" or one.over != other.over or len(one.values) != len(other.values):
        return []
    return [a - b for a, b in zip(one.values, other.values, strict=True) if a != b or math.isfinite(a)]


@dataclass(frozen=True)
class Pooled:
    """Rows that differ by their seed alone."""

    name: str
    cells: list[tuple[float, float] | None]
    """Of each column the mean and the standard deviation of a sample; None unless all of the rows have it, and finite."""


def over_seeds(table: Table) -> list[Pooled]:
    """Mean and spread of each group of runs whose settings are the same but for loop.seed."""
    groups: dict[str, dict[str, list[int]]] = {}
    for index, row in enumerate(table.rows):
        if row.run is not None:
            settings = {name: value for name, value in numbers_of(config_of(row.run)).items() if name != "loop.seed"}
            about = json.dumps([row.preset, row.run.record["snapshot"], row.run.record["latents"], settings], sort_keys=True)
            way = json.dumps([drawn(result.sources[-1]) for result in row.results[:1]], sort_keys=True)
            groups.setdefault(about, {}).setdefault(way, []).append(index)
    made = []
    for members in (members for ways in groups.values() for members in of_one_way(ways)):
        runs = [run.uri for index in members if (run := table.rows[index].run)]
        seeds = {config_of(run).get("loop.seed") for index in members if (run := table.rows[index].run)}
        if len(runs) < 2 or len(set(runs)) < len(runs) or len(seeds) < len(runs):  # alone, one run twice, one seed twice
            continue
        columns = [[table.cells[index][k] for index in members] for k in range(len(table.columns))]
        cells = [mean_and_spread([one.value for one in column if one], len(members)) for column in columns]
        made.append(Pooled(f"mean of {len(members)} seeds: {', '.join(table.rows[index].name for index in members)}", cells))
    return made


def of_one_way(ways: dict[str, list[int]]) -> list[list[int]]:
    """Rows by the way they were drawn; those that nobody has judged yet, "[]", are with the others where these have one way."""
    judged = [members for way, members in ways.items() if way != "[]"]
    return [sorted([*judged[0], *ways.get("[]", [])])] if len(judged) == 1 else list(ways.values())


def mean_and_spread(values: Sequence[float], count: int) -> tuple[float, float] | None:
    """None unless there are `count` values, all finite."""
    return (fmean(values), stdev(values)) if len(values) == count and all(map(math.isfinite, values)) else None


def error_of(one: Metric) -> float:
    """Of the value: stated, or from the spread over seeds; 0 where neither is known. That over images or pools is none."""
    if one.standard_error is not None:
        return one.standard_error
    if one.spread is None or one.over != "seeds":
        return 0.0
    return one.spread / len(one.values) ** 0.5


# ---------------------------------------------------------------- runs behind the rows


def scales(row: Row, metric: str = "val/loss") -> dict[int, float]:
    """A validation metric of the run's best checkpoint by the upper end of r, pixels; {} without any."""
    metrics = row.run.best.meta["metrics"] if row.run and row.run.best else {}
    ends = {int(name.rsplit("_", 1)[1]): value for name, value in metrics.items() if name.startswith(f"{metric}_r_to_")}
    return dict(sorted(ends.items()))


def scale_metric(rows: Sequence[Row]) -> str:
    """The validation metric by scale that compares: the loss where all runs have the same, else PSNR where that is so."""
    return next((metric for metric in ("val/loss", "val/psnr") if compares(rows, metric)), "val/loss")


def compares(rows: Sequence[Row], metric: str) -> bool:
    """Whether all runs have a validation metric by scale, under one condition."""
    runs = [row for row in rows if row.run is not None]
    conditions = {row_condition(row, metric) for row in runs}
    return len(conditions) == 1 and "" not in conditions and all(scales(row, metric) for row in runs)


def row_condition(row: Row, metric: str) -> str:
    """The condition of a validation metric; "" where the row has none."""
    return next((condition_of(result) for result in validation(row) if result.metrics[0].name == metric), "")


def config_of(run: Facts) -> dict[str, Any]:
    """The flat config with which the best checkpoint was made; a run without one: that of its beginning. Steps, validation and
    the like may change on the way."""
    return run.best.meta["config"] if run.best else run.record["config"]


def numbers_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that change numbers, the number of steps among them: without those of logging and the machine."""
    return {name: value for name, value in config.items() if name == "loop.steps" or not name.startswith(OPERATIONAL)}


def settings_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A heading with the names of the runs, then a line for each setting in which they differ; [] where there is none."""
    runs = one_a_run(rows)
    records = [numbers_of(config_of(row.run)) for row in runs if row.run]
    names = sorted({name for record in records for name in record
                    if any(record[name] != other.get(name) for other in records)})
    lines = [[name, *(str(record.get(name, "not set")) for record in records)] for name in names]
    return [["", *(row.name for row in runs)], *lines] if lines else []


def one_a_run(rows: Iterable[Row]) -> list[Row]:
    """The first row of each run."""
    return list({row.run.uri: row for row in reversed(list(rows)) if row.run}.values())[::-1]
