"""Positions in the configuration that take one of several frozen dataclasses, selected by a tag.

In JSON, the tag is the key `"type": "lion"`. The annotation of the position is a base class with a table of
the built-in variants. Each is imported when its tag is requested, so the table costs nothing:

    @dataclass(frozen=True, kw_only=True)
    class OptimizerConfig(Variant, built_in={"lion": "flava_ds.training.lion:LionConfig"}):
        lr: float = 1e-3

    @dataclass(frozen=True, kw_only=True)
    class LionConfig(OptimizerConfig, type="lion"):
        lr: float = 1e-4

A class that is not in the table registers itself when it is defined, so recipes outside the package can bring
their own.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from flava_ds.errors import ConfigError, did_you_mean

NONE = "none"
"""The command line's word for an optional position without a variant."""


class Variant:
    """Base of the annotations of such positions; see the module's docstring."""

    type: ClassVar[str | None] = None
    """The tag; None for the class that annotates the position."""
    _built_in: ClassVar[Mapping[str, str]] = {}
    _defined: ClassVar[dict[str, Any]]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    """Every variant is a dataclass; `check_class` checks it."""

    def __init_subclass__(
        cls, *, type: str | None = None, built_in: Mapping[str, str] | None = None, **others: Any
    ) -> None:
        """Declares a position, if a direct subclass, or registers a variant of one under `type`.

        Raises: ConfigError when another class has the tag.
        """
        super().__init_subclass__(**others)
        cls.type = type
        if Variant in cls.__bases__:
            cls._built_in, cls._defined = built_in or {}, {}
        if type is None:
            return
        place = f"{cls.__module__}:{cls.__qualname__}"
        holder = cls._built_in.get(type) or (_place(cls._defined[type]) if type in cls._defined else place)
        if type == NONE or holder != place:
            why = "that word means an empty position" if type == NONE else f"{holder} has it"
            raise ConfigError(f"{place} cannot have the type '{type}': {why}; choose another")
        cls._defined[type] = cls


Chosen = TypeVar("Chosen", bound=Variant)


def is_position(hint: Any) -> typing.TypeGuard[type[Variant]]:
    """Returns whether an annotation is a base class of variants."""
    return isinstance(hint, type) and issubclass(hint, Variant)


def choices(base: type[Chosen]) -> list[str]:
    """Lists the tags for a position annotated with `base`: the built-in ones in order, then all defined ones.

    If `base` is below the class with the table, this imports all variants to find those that derive from it.
    """
    tags = list(dict.fromkeys([*base._built_in, *base._defined]))
    if Variant in base.__bases__:
        return tags
    return [tag for tag in tags if issubclass(_import(base, tag), base)]


def find(base: type[Chosen], tag: Any, label: str, otherwise: str = "") -> type[Chosen]:
    """Returns the class of a tag, importing the module of a built-in one.

    Raises: ConfigError that names `label`, the tag and the choices, plus the closest one or `otherwise`.
    """
    known = choices(base)
    if tag not in known:
        hint = did_you_mean(str(tag), known) or otherwise
        raise ConfigError(f"{label} {tag!r} is none of {', '.join(known) or 'the known ones'}{hint}")
    return _import(base, tag)


def _import(base: type[Chosen], tag: str) -> type[Chosen]:
    """Returns the class of a known tag, checked."""
    if tag not in base._defined:
        importlib.import_module(base._built_in[tag].split(":")[0])
    kind = base._defined[tag]
    check_class(kind)
    return kind


def check_class(kind: type[Variant]) -> None:
    """Checks the class of a variant where it is used: __init_subclass__ runs too early for the decorator.

    Raises: ConfigError unless it is a frozen dataclass that leaves 'type' to the tag and gives a value to all
    class variables that its bases declare without one.
    """
    if kind.type is None:
        raise _without_type(kind)
    told = f"{_place(kind)}, the type '{kind.type}',"
    parameters = vars(kind).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise ConfigError(
            f"{told} is not a frozen dataclass; write @dataclass(frozen=True, kw_only=True) above it"
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    if "type" in fields:
        raise ConfigError(
            f"{_place(kind)}: the key 'type' is reserved for the tag '{kind.type}'; rename its field"
        )
    # dataclass notes class variables among the fields of a class, and fields() leaves them out
    for name in kind.__dataclass_fields__.keys() - fields:
        if not hasattr(kind, name) and "InitVar" not in str(kind.__dataclass_fields__[name].type):
            raise ConfigError(f"{told} has no `{name}`, which is declared in a base class; give it a value")


def _place(kind: type) -> str:
    """Formats a class as in the table of built-in variants."""
    return f"{kind.__module__}:{kind.__qualname__}"


def tag_of(value: Variant) -> str:
    """Returns the tag for JSON.

    Raises: ConfigError for an instance of the class that annotates the position, or of one without a type.
    """
    if value.type is None:
        raise _without_type(type(value))
    return value.type


def _without_type(kind: type[Variant]) -> ConfigError:
    """Returns the error for the class that annotates a position, and for one of its own without a type."""
    known = ", ".join(choices(kind))
    own = f'define it with one: class {kind.__name__}({kind.__mro__[1].__name__}, type="NAME")'
    return ConfigError(
        f"{_place(kind)} has no type, so JSON could not name it; "
        f"{f'use one of its variants ({known})' if known else own}"
    )


def switched(old: Variant | None, kind: type[Chosen], label: str) -> Chosen:
    """Returns `kind` with its defaults, and with the changed fields of `old` of the same name and type.

    Raises: ConfigError that names `label` and the fields of `kind` that have no value.
    """
    if isinstance(old, kind) and type(old) is kind:
        return old
    kept: dict[str, Any] = {}
    if old is not None:
        before, now = typing.get_type_hints(type(old)), typing.get_type_hints(kind)
        kept = {
            field.name: getattr(old, field.name)
            for field in dataclasses.fields(old)
            if field.name in now
            and before[field.name] == now[field.name]
            and getattr(old, field.name) != default_of(field)
        }
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in kept and default_of(field) is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(
            f"{label} {kind.type}: {', '.join(missing)} of {kind.__name__} has no default; choose it in "
            "a recipe, with a value"
        )
    return kind(**kept)


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default of a dataclass field, or dataclasses.MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
