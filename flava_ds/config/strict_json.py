"""Converts dataclasses to JSON types and back, strictly: an unknown key is an error with a suggestion."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, Literal

from flava_ds.config.field_docs import field_hints
from flava_ds.config.places import alternatives, without_none
from flava_ds.config.variants import Variant, choices, find, is_position, tag_of
from flava_ds.errors import ConfigError, did_you_mean


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration dataclass to plain JSON types; a variant's key 'type' comes first."""
    return json.loads(json.dumps(_plain(config)))


def _plain(value: Any) -> Any:
    """Converts dataclasses to objects at any depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tagged = {"type": tag_of(value)} if isinstance(value, Variant) else {}
        fields = dataclasses.fields(value)
        return tagged | {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def from_dict(kind: type, data: dict[str, Any], where: str = "") -> Any:
    """Builds dataclass `kind`, or the variant that the key 'type' names, from plain types, strictly.

    Raises: ConfigError for an unknown key (with a suggestion), a missing key, or a value of another type.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{where.rstrip('.') or 'the whole'} is {data!r:.60}; expected an object with the fields of "
            f"{kind.__name__}"
        )
    if is_position(kind):
        data = dict(data)
        if "type" not in data:
            raise ConfigError(f"key '{where}type' is missing; choose one of {', '.join(choices(kind))}")
        kind = find(
            kind,
            data.pop("type"),
            f"{where}type",
            otherwise="; if code of your own defines it, add --plugin FILE.py, or import it first in Python",
        )
    hints = field_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [key for key in data if key not in fields]
    if unknown:
        raise ConfigError(f"unknown key '{where}{unknown[0]}'{did_you_mean(unknown[0], fields)}")
    missing = [
        f.name
        for f in fields.values()
        if f.name not in data and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"key '{where}{missing[0]}' is missing; it has no default")
    return kind(**{key: convert(hints[key], value, f"{where}{key}.") for key, value in data.items()})


def convert(hint: Any, value: Any, where: str) -> Any:
    """Converts a JSON value to the type of a field's annotation; `where` is the field's name plus a dot.

    Raises: ConfigError for a value of another type.
    """
    if value is None and type(None) in alternatives(hint):
        return None
    hint = without_none(hint)
    origin, arguments, name = typing.get_origin(hint), typing.get_args(hint), where.rstrip(".")
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or is_position(hint)):
        return from_dict(hint, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r:.60}; expected an object with a value for each name")
        return {key: convert(arguments[1], entry, f"{where}{key}.") for key, entry in value.items()}
    if origin is tuple:
        return _convert_entries(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(map(repr, arguments))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            digits = len(str(value))
            raise ConfigError(f"{name} has {digits} digits, too many for a float") from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} is {value!r}; expected {hint.__name__}")
    return value


def _convert_entries(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Converts a list to a tuple with the annotations `hints`; `...` repeats the first one."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where.rstrip('.')} is {value!r:.60}; expected a list")
    if Ellipsis in hints:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{where.rstrip('.')} is {value!r:.60}; expected {len(hints)} values")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(convert(hint, entry, f"{where}{i}.") for i, (hint, entry) in pairs)
