"""What an evaluation found, with every choice that its numbers depend on, as one JSON file."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from infd import storage
from infd.evaluation.errors import EvaluationError

FORMAT = "infd-evaluation-1"
FORBIDDEN = re.compile(r"[^\w\-. :/]")
"""What MLflow does not take in the name of a metric."""
NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
"""How JSON, which has no word for them, holds such numbers."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure."""

    name: str
    value: float
    """Mean of `values`; of PSNR those that are infinite do not count, unless all are."""
    values: tuple[float, ...] = ()
    """One a seed; for pairs of images one a pair, or one a pool of pairs."""
    over: Literal["seeds", "images", "pools"] = "seeds"
    """What `values` are over; pools: of several pairs each, whose errors are averaged before decibels are taken."""
    spread: float | None = None
    """Standard deviation of the finite `values` (divided by their number - 1); None for fewer than two."""
    standard_error: float | None = None
    """Where the metric estimates its own."""
    better: Literal["lower", "higher", ""] = ""


def metric(
    name: str, values: Sequence[float], *, better: Literal["lower", "higher", ""],
    over: Literal["seeds", "images", "pools"] = "seeds", standard_error: float | None = None,
) -> Metric:
    """Mean and spread of values."""
    finite = [value for value in values if math.isfinite(value)]
    return Metric(
        name=name, value=float(np.mean(finite)) if finite else float(values[0]), values=tuple(map(float, values)), over=over,
        spread=float(np.std(finite, ddof=1)) if len(finite) > 1 else None, standard_error=standard_error, better=better)


@dataclass(frozen=True, kw_only=True)
class Result:
    """All of one evaluation. Law: the same inputs give the same JSON, byte for byte, on one machine."""

    protocol: str
    metrics: tuple[Metric, ...]
    choices: dict[str, Any]
    """Every field of the protocol's config, by dotted name."""
    sources: tuple[dict[str, Any], ...]
    """The sides, in the order given: address, kind, images, fingerprint of the content."""
    counts: dict[str, int]
    """How many images, patches or pairs the numbers are made of."""
    networks: tuple[dict[str, Any], ...] = ()
    """Each network that was used: name, sha256 of its weights, what becomes of its input."""
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    items: tuple[str, ...] = ()
    """Names of the images that `values` over images belong to."""
    notes: tuple[str, ...] = ()
    """What a reader must know before comparing the numbers."""
    versions: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """The value of a metric. Raises KeyError listing the names."""
        for one in self.metrics:
            if one.name == name:
                return one.value
        raise KeyError(f"{name}: the metrics are {', '.join(one.name for one in self.metrics)}")

    def to_json(self) -> bytes:
        """Strict JSON, keys sorted; numbers that are not finite as the words of NOT_FINITE."""
        tree = {"format": FORMAT, **asdict(self)}
        return (json.dumps(worded(tree), sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, *, name: str = "result") -> "Result":
        """Law: `to_json` of it gives the same bytes. Raises EvaluationError naming `name`: another kind of file."""
        try:
            tree = json.loads(data)
            found = tree.pop("format")
            if found != FORMAT:
                raise EvaluationError(f"{name}: format {found}; expected {FORMAT}; read it with the version that wrote it")
            metrics = tuple(Metric(**unworded(one)) for one in tree.pop("metrics"))
            curves = {key: tuple(unworded(values)) for key, values in tree.pop("curves").items()}
            lists = {key: tuple(tree.pop(key)) for key in ("sources", "networks", "items", "notes")}
            return cls(metrics=metrics, curves=curves, **lists, **tree)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{name}: cannot be read as a result ({type(error).__name__}); expected JSON of {FORMAT}; "
                                  "evaluate again") from error

    def write(self, uri: str) -> None:
        """The JSON at an address, whole or not at all."""
        storage.put_atomic(uri, self.to_json())


def tracked_name(name: str) -> str:
    """eval/frechet_48/64.efficientnet-lite0 of frechet_48/64[efficientnet-lite0]: as training and trackers have it."""
    return "eval/" + FORBIDDEN.sub(".", name).rstrip(".")


def read_result(uri: str) -> Result:
    """Raises EvaluationError or StorageError naming the address."""
    return Result.from_json(storage.read_bytes(uri), name=uri)


def worded(value: Any) -> Any:
    """Numbers that are not finite as words, in lists and dicts too."""
    if isinstance(value, float) and not math.isfinite(value):
        return next(word for word, number in NOT_FINITE.items() if str(number) == str(value))
    if isinstance(value, Mapping):
        return {key: worded(one) for key, one in value.items()}
    return [worded(one) for one in value] if isinstance(value, list | tuple) else value


def unworded(value: Any) -> Any:
    """The other way; only numbers and lists of them are looked at, so that a name may be "nan"."""
    if isinstance(value, dict):
        return {key: unworded(one) if key in ("value", "values", "spread", "standard_error") else one
                for key, one in value.items()}
    if isinstance(value, list):
        return tuple(unworded(one) for one in value)
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value
