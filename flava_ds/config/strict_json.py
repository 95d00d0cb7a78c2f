"""Dataclasses to JSON types and back, strictly: an unknown key is an error with a suggestion. `flava_ds.config` offers these as its own."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, Literal

from flava_ds.errors import ConfigError


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration dataclass into plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, data: dict[str, Any], where: str = "") -> Any:
    """Builds dataclass `kind` from plain types, strictly: unknown keys are errors with a suggestion."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where.rstrip('.') or 'the whole'} is {data!r:.60}; expected an object with the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    unknown = [key for key in data if key not in hints]
    if unknown:
        raise ConfigError(f"unknown key '{where}{unknown[0]}'{did_you_mean(unknown[0], hints)}")
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in data and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"key '{where}{missing[0]}' is missing; it has no default")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}.") for key, value in data.items()})


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """Returns '; did you mean ...?' for the nearest known word, or the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Turns a JSON value into what a field's annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where.rstrip('.')} is {value!r:.60}; expected a list")
        item = arguments[0]
        return tuple(_convert(item, entry, f"{where}{i}.") for i, entry in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where.rstrip('.')} is {value!r}; choose one of {', '.join(map(repr, arguments))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint):
        raise ConfigError(f"{where.rstrip('.')} is {value!r}; expected {hint.__name__}")
    return value
