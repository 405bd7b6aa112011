"""The one JSON form of a config: dotted fields in sorted order, values of JSON.

A config is written beside what was made with it; the sha256 of this form (`identity`) names it for ever.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from infd.config import require
from infd.errors import ConfigError

ConfigT = TypeVar("ConfigT")
OPERATIONAL = ("loader.", "loop.compiled", "loop.channels_last", "loop.steps", "loop.log_every", "loop.checkpoint_every",
               "loop.keep_every", "loop.validate_every", "loop.validate_samples", "loop.preview_",
               "preview_steps", "evaluation.")
"""Fields that may differ between a checkpoint and the run that resumes it."""


def flat(config: Any) -> dict[str, object]:
    """`{"loop.steps": 1000, …}`: dotted fields in sorted order, values of JSON."""
    out: dict[str, object] = {}

    def walk(value: Any, prefix: str) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name)
        else:
            out[prefix] = list(value) if isinstance(value, tuple) else value

    walk(config, "")
    return dict(sorted(out.items()))


def seen_px(config: Mapping[str, Any]) -> int:
    """Side of what the renderer's norms saw at once in a training of stage one of that flat form: `Field`'s patch_px."""
    return int(config["crop.patch_px"]) + 2 * int(config.get("loss.query_pad_px", 0))


def numbers(config: Any) -> dict[str, object]:
    """The flat form without OPERATIONAL fields: what a run may not change while it goes on."""
    return {name: value for name, value in flat(config).items() if not name.startswith(OPERATIONAL)}


def departures(config: Any) -> dict[str, object]:
    """Those of `numbers` that differ from a field's default: a new field with a default changes nothing here."""
    plain: dict[str, object] = {}

    def walk(kind: Any, prefix: str, given: Any) -> None:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            name, default = f"{prefix}{field.name}", getattr(given, field.name) if given is not None else field.default
            if dataclasses.is_dataclass(hints[field.name]):
                walk(hints[field.name], f"{name}.", default if dataclasses.is_dataclass(default) else None)
            elif default is not dataclasses.MISSING:
                plain[name] = list(default) if isinstance(default, tuple) else default

    walk(type(config), "", None)
    return {name: value for name, value in numbers(config).items() if name not in plain or plain[name] != value}


def digest(values: dict[str, object]) -> str:
    """sha256 (hex) of a flat JSON form."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identity(config: Any) -> str:
    """sha256 (hex) of a config's flat JSON form."""
    return digest(flat(config))


def unflat(kind: type[ConfigT], values: dict[str, object]) -> ConfigT:
    """The config whose `flat` form is `values`. Raises ConfigError naming fields unknown, missing or of another type."""
    left = dict(values)

    def build(cls: Any, prefix: str) -> Any:
        hints = typing.get_type_hints(cls)
        made: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = f"{prefix}{field.name}"
            if dataclasses.is_dataclass(hints[field.name]):
                made[field.name] = build(hints[field.name], f"{name}.")
            elif name in left:
                value = left.pop(name)
                require(fits(value, hints[field.name]), name, value, f"expected {spelled(hints[field.name])}")
                made[field.name] = tuple(value) if isinstance(value, list) else value
            elif field.default is dataclasses.MISSING:
                raise ConfigError(f"{name}: missing; a {cls.__name__} needs it")
        return cls(**made)

    config = build(kind, "")
    if left:
        raise ConfigError(f"{', '.join(sorted(left))}: unknown; not a field of {kind.__name__}")
    return typing.cast(ConfigT, config)


def fits(value: object, hint: Any) -> bool:
    """Whether a value of JSON is of a field's type; whole numbers are floats too, and truth is no number."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in inside
    if origin is tuple:
        kinds = inside[:1] * len(value) if isinstance(value, list) and inside[-1] is Ellipsis else inside
        return isinstance(value, list) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if inside:                                                     # X | None
        return any(fits(value, kind) for kind in inside)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def spelled(hint: Any) -> str:
    """A field's type in words for a message."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("NoneType", "null")


def differing(a: Any, b: Any) -> list[str]:
    """Dotted fields in which two configs differ, those of OPERATIONAL left out."""
    one, two = numbers(a), numbers(b)
    return [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
