"""What a sweep tries: fields and values, checked and numbered before anything starts. Standard library alone.

A point is one choice of values; each point has a trial for every seed. Trial N is seed N mod S of point N div S, for ever.
"""

import itertools
import json
import math
import random
import re
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, PlaceConfig, require
from infd.config_form import departures, digest, fits, flat, spelled, unflat
from infd.errors import ConfigError
from infd.presets import AUTOENCODER, DIFFUSION

TrainingConfig = AutoencoderTrainingConfig | DiffusionTrainingConfig
Values = dict[str, object]
"""Field -> value, in the order in which the fields were given."""

FORMAT = 1
KINDS: dict[str, type[AutoencoderTrainingConfig] | type[DiffusionTrainingConfig]] = {
    "ae": AutoencoderTrainingConfig, "ldm": DiffusionTrainingConfig}
"""What is trained, by the words of the command line."""
SEED = "loop.seed"
FREE = ("loader.",)
"""Fields that the same sweep may have otherwise later: they change no number."""
DIGITS = 3
"""Significant digits of a number drawn from a range: a person can repeat it."""
TRIES = 1000
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(log|linear))?")
GREATER_IS_BETTER = ("psnr", "ssim", "precision", "recall", "accuracy")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How values are chosen, and trials judged."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination. random and optuna: as many points as --samples, also from ranges; optuna learns from the
    points before."""
    samples: int = 8
    """random, optuna: points; each has a trial for every seed."""
    search_seed: int = 0
    """random, optuna: key of the draws."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: a trial ends early where it is worse than most others were at that step (asynchronous successive halving)."""
    reduction: int = 3
    """asha: of so many trials one goes on, at every rung; rungs lie this factor of steps apart."""
    grace_steps: int = 0
    """asha: no trial ends before this step; 0: a ninth of its steps, or its first validation where that is later."""
    metric: str = "val/loss"
    """What trials are judged by: a figure of validation (val/…), of --evaluation.every (eval/…), or of training at
    checkpoints (train/loss). One that depends on what --vary changes, as val/loss on loss.l1, does not compare all of them."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; auto: more where the name says psnr, ssim and the like."""

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, "must be at least 1")
        require(self.reduction >= 2, "reduction", self.reduction, "must be at least 2")
        require(self.grace_steps >= 0, "grace_steps", self.grace_steps, "must not be negative")
        require(bool(self.metric.strip()), "metric", self.metric, "expected a name such as val/loss")

    @property
    def steers(self) -> bool:
        """Whether figures have a say in what is trained; else they rank what was trained, and another metric ranks it too."""
        return self.search == "optuna" or self.scheduler != "none"

    @property
    def training(self) -> "SweepConfig":
        """Without what has no say in what is trained."""
        return self if self.steers else replace(self, metric=SweepConfig.metric, mode=SweepConfig.mode)

    @property
    def direction(self) -> Literal["min", "max"]:
        if self.mode != "auto":
            return self.mode
        return "max" if any(word in self.metric for word in GREATER_IS_BETTER) else "min"


# ---------------------------------------------------------------- fields and values


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A field with the values it takes: `choices`, or a range from `low` to `high`."""

    name: str
    choices: tuple[object, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whole numbers alone."""

    @property
    def is_range(self) -> bool:
        return not self.choices

    def at(self, share: float) -> object:
        """The value at `share` in [0, 1) of the way. Law: it lies among the choices, or in the range, ends included."""
        if not self.is_range:
            return self.choices[int(share * len(self.choices))]
        if self.whole and not self.log:
            return self.rounded(math.floor(self.low + share * (self.high - self.low + 1)))
        if self.log:
            return self.rounded(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self.rounded(self.low + share * (self.high - self.low))

    def rounded(self, value: float) -> object:
        """To DIGITS, or to a whole number; never beyond the ends."""
        near = round(value) if self.whole else float(f"{value:.{DIGITS}g}")
        kept = min(max(near, self.low), self.high)
        return int(kept) if self.whole else kept


def axes_of(texts: Sequence[str], base: TrainingConfig) -> tuple[Axis, ...]:
    """One axis for each `FIELD=V1,V2,…` or `FIELD=LOW..HIGH`. Raises ConfigError naming field, value and rule."""
    axes = tuple(axis_of(text, base) for text in texts)
    names = [axis.name for axis in axes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--vary {twice[0]}: given twice; expected once, with all its values: {twice[0]}=A,B,C")
    return axes


def axis_of(text: str, base: TrainingConfig) -> Axis:
    name, equals, told = (part.strip() for part in text.partition("="))
    if not (name and equals and told):
        raise ConfigError(f"--vary {text}: expected FIELD=VALUE,VALUE,… or FIELD=LOW..HIGH, such as loss.gan=0,0.5")
    known = flat(base)
    name = name.replace("-", "_")
    if name == SEED:
        raise ConfigError(f"--vary {name}: seeds repeat every point; give them with --seeds 0 1 2")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise ConfigError(f"--vary {name}: unknown; not a field of {type(base).__name__}"
                          + (f"; did you mean {near[0]}?" if near else "; the job's --help lists them"))
    hint = hint_of(type(base), name)
    if found := RANGE.fullmatch(told):
        return range_of(name, hint, *found.groups())
    choices = tuple(typed(value, hint) for value in pieces(told))
    for value in choices:
        require(fits(value, hint), f"--vary {name}", value, f"expected {spelled(hint)}")
        require(choices.count(value) == 1, f"--vary {name}", value, "given twice; expected each value once")
    return Axis(name=name, choices=choices)


def range_of(name: str, hint: Any, low: str, high: str, scale: str | None) -> Axis:
    """Raises ConfigError for a field that is no number, and for ends that are no range."""
    kinds = kinds_of(hint)
    whole, text = float not in kinds, f"{low}..{high}"
    require(bool({int, float} & kinds), f"--vary {name}", text, f"a range is of numbers; this field is {spelled(hint)}")
    a, b = float(low), float(high)
    require(a < b, f"--vary {name}", text, "the low end must be below the high end")
    require(not whole or (a.is_integer() and b.is_integer()), f"--vary {name}", text, "expected whole numbers")
    require(scale != "log" or a > 0, f"--vary {name}", text, "a log range begins above 0")
    log = scale == "log" or (scale is None and a > 0 and b >= 10 * a)
    return Axis(name=name, low=a, high=b, log=log, whole=whole)


def pieces(text: str) -> list[str]:
    """`[8,8],[4,4]` -> `[8,8]`, `[4,4]`: cut at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def typed(text: str, hint: Any) -> object:
    """A value of JSON as its field has it: words need no quotes, a whole number becomes a float where one is expected."""
    if hint is str:
        return text
    plain = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    try:
        value = json.loads(plain)
    except ValueError:
        return text
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and float in kinds_of(hint) else value


def kinds_of(hint: Any) -> set[Any]:
    """A field's type, or all of its types: of `int | None` both; a tuple of numbers is no number."""
    return {hint} if typing.get_origin(hint) in (tuple, Literal) else {hint, *typing.get_args(hint)}


def hint_of(kind: type, name: str) -> Any:
    """The type of a dotted field."""
    found: Any = kind
    for part in name.split("."):
        found = typing.get_type_hints(found)[part]
    return found


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep."""

    number: int
    point: int
    seed: int
    values: Values
    config: TrainingConfig
    run: str
    """URI of its run: SWEEP/trials/NNN."""

    @property
    def steps(self) -> int:
        return self.config.loop.steps

    @property
    def text(self) -> str:
        return values_text({**self.values, "seed": self.seed})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a sweep is, as SWEEP/plan.json records it; what a command may change later is not here."""

    uri: str
    stage: Literal["ae", "ldm"]
    preset: str
    config: TrainingConfig
    vary: tuple[str, ...]
    seeds: tuple[int, ...]
    sweep: SweepConfig
    snapshot: str
    start_from: str = ""
    latents: dict[str, str] | None = None
    """Stage two: `address` and `sha256`."""
    axes: tuple[Axis, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", axes_of(self.vary, self.config))
        require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", list(self.seeds), "expected one or more, each once")
        ranges = [axis.name for axis in self.axes if axis.is_range]
        if self.sweep.search == "grid" and ranges:
            raise ConfigError(f"--vary {ranges[0]}: a range has no grid; list its values, or take --search random or optuna")
        if self.sweep.search != "grid" and not self.axes:
            raise ConfigError(f"search={self.sweep.search}: nothing to choose; give --vary FIELD=LOW..HIGH")
        if self.sweep.search == "random" and (most := self.combinations()) < self.sweep.samples:
            raise ConfigError(f"samples={self.sweep.samples}: there are only {most} combinations; take --search grid, or fewer")

    def combinations(self) -> float:
        """How many points there are; infinite with a range."""
        return math.inf if any(axis.is_range for axis in self.axes) else math.prod(len(axis.choices) for axis in self.axes)

    @property
    def count(self) -> int:
        """How many trials."""
        return len(self.seeds) * (int(self.combinations()) if self.sweep.search == "grid" else self.sweep.samples)

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def record(self) -> dict[str, Any]:
        return {"format": FORMAT, "stage": self.stage, "preset": self.preset, "config": flat(self.config),
                "vary": list(self.vary), "seeds": list(self.seeds), "sweep": asdict(self.sweep), "snapshot": self.snapshot,
                "start_from": self.start_from, "latents": self.latents}

    @classmethod
    def of(cls, uri: str, record: dict[str, Any]) -> "Plan":
        """From `record`; fields that a config has got since are at their default."""
        told = {name: record[name] for name in ("stage", "preset", "snapshot", "start_from", "latents")}
        return cls(uri=uri, config=unflat(KINDS[record["stage"]], record["config"]), vary=tuple(record["vary"]),
                   seeds=tuple(record["seeds"]), sweep=SweepConfig(**record["sweep"]), **told)

    def trial(self, number: int, values: Values) -> Trial:
        """Raises ConfigError where these values do not go together, naming the trial."""
        point, turn = divmod(number, len(self.seeds))
        told = {**flat(self.config), **values, SEED: self.seeds[turn]}
        try:
            config = unflat(KINDS[self.stage], told)
        except ConfigError as error:
            raise ConfigError(f"trial {number} ({values_text(values)}): {error}") from error
        return Trial(number=number, point=point, seed=self.seeds[turn], values=values, config=config,
                     run=f"{self.uri}/trials/{number:03d}")

    def point(self, point: int, values: Values) -> list[Trial]:
        """A trial for every seed."""
        first = point * len(self.seeds)
        return [self.trial(first + turn, values) for turn in range(len(self.seeds))]

    def listed(self) -> list[Trial]:
        """All trials of a grid or a random search; none of optuna's, which are chosen on the way.

        Law: they depend on the plan alone, and the first points of a random search not on how many there are.
        """
        if self.sweep.search == "optuna":
            return []
        points = self._grid() if self.sweep.search == "grid" else self._drawn()
        return [trial for point, values in enumerate(points) for trial in self.point(point, values)]

    def _grid(self) -> list[Values]:
        names = [axis.name for axis in self.axes]
        return [dict(zip(names, row, strict=True)) for row in itertools.product(*(axis.choices for axis in self.axes))]

    def _drawn(self) -> list[Values]:
        """Points drawn at random, each once."""
        points: list[Values] = []
        for point in range(self.sweep.samples):
            draws = (random.Random(f"{self.sweep.search_seed}/{point}/{attempt}") for attempt in range(TRIES))
            drawn = ({axis.name: axis.at(draw.random()) for axis in self.axes} for draw in draws)
            fresh = next((values for values in drawn if values not in points), None)
            if fresh is None:
                raise ConfigError(f"samples={self.sweep.samples}: after {point} points no new one was drawn in {TRIES} tries; "
                                  "take fewer --samples, or wider ranges")
            points.append(fresh)
        return points


def default_uri(root: str, stage: str, preset: str, config: TrainingConfig, told: dict[str, Any]) -> str:
    """DATASET/sweeps/PRESET-HASH, the hash being that of all that tells this sweep from others: `told`, and the fields of
    the config that are not at their default."""
    hashed = digest({**told, "config": departures(config), "steps": config.loop.steps})
    return f"{root}/sweeps/{'ldm-' if stage == 'ldm' else ''}{preset}-{hashed[:8]}"


def differences(before: Plan, now: Plan) -> list[str]:
    """`seeds was [0, 1] and is [0, 2]`, for all that two plans of one address do not share."""
    old, new = spread(before.record()), spread(now.record())
    return [f"{name} was {old.get(name)} and is {new.get(name)}" for name in sorted({*old, *new})
            if old.get(name) != new.get(name)]


def spread(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the fields of config and sweep beside the others, and without those that may change."""
    sweep = asdict(SweepConfig(**record["sweep"]).training)
    told = {name: value for name, value in record.items() if name not in ("config", "sweep")} | sweep
    return told | {name: value for name, value in record["config"].items() if not name.startswith(FREE)}


def values_text(values: Values) -> str:
    return " ".join(f"{name}={value_text(value)}" for name, value in values.items()) or "the preset itself"


def value_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


# ---------------------------------------------------------------- the command of a trial


def command(trial: Trial, plan: Plan, where: PlaceConfig) -> list[str]:
    """The words of the shell that train `trial` by hand, in its own run folder.

    Law: parsed by its job they give the trial's config, and `where` but for the run's address.
    """
    presets: dict[str, Any] = {"ae": AUTOENCODER, "ldm": DIFFUSION}[plan.stage]
    target = flat(trial.config)
    bases = {name: flat(presets[name]()) for name in ([plan.preset] if plan.preset in presets else presets)}
    apart = {name: {key: value for key, value in target.items() if base.get(key) != value} for name, base in bases.items()}
    nearest = min(apart, key=lambda name: len(apart[name]))
    source = ["--latents", (plan.latents or {})["address"]] if plan.stage == "ldm" else ["--dataset", plan.snapshot]
    words = ["python", f"jobs/train_{plan.stage}.py", nearest, *source, "--run", trial.run]
    plain = flat(type(where)())
    told = {**flat(where), "start_from": plan.start_from}
    words += [word for name in ("start_from", "workers", "device", "max_failures", "experiment") if told[name] != plain[name]
              for word in flag(name, told[name])]
    return words + [word for name, value in apart[nearest].items() for word in flag(name, value)]


def flag(name: str, value: object) -> list[str]:
    """A field as its option: `--loop.batch 4`, `--loop.no-compiled`, `--model.widths 16 16`."""
    group, _, own = name.replace("_", "-").rpartition(".")
    option = f"--{group}." if group else "--"
    if isinstance(value, bool):
        return [f"{option}{'' if value else 'no-'}{own}"]
    return [f"{option}{own}", *(map(str, value) if isinstance(value, list) else [str(value)])]

