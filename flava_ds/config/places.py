"""Walks a configuration: each field with its name and annotation, each section with its variants."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from flava_ds.config.field_docs import field_hints
from flava_ds.config.variants import NONE, Variant, check_class, choices, is_position
from flava_ds.errors import ConfigError


class Place(NamedTuple):
    """A settable value, or a section whose variant can be exchanged."""

    path: tuple[str | int, ...]
    """Field names, mapping keys and tuple indices from the root."""
    hint: Any
    """The annotation, bounds included."""
    base: type[Variant] | None
    """Base class of the possible variants; None for a field."""
    optional: bool
    """Whether it can be None."""
    value: Any

    @property
    def name(self) -> str:
        """The name in messages and JSON, e.g. 'data.shuffle_block_size'."""
        return ".".join(map(str, self.path))

    @property
    def option(self) -> str:
        """The name on the command line without leading dashes, e.g. 'data.shuffle-block-size'."""
        return self.name.replace("_", "-")

    def choices(self) -> list[str]:
        """Lists the variants that the command line accepts here."""
        return [*choices(self.base), *([NONE] if self.optional else [])] if self.base else []


def places(node: Any, hint: Any = None, path: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Yields every field of a configuration; a variant's position comes before the variant's fields."""
    parts = alternatives(hint)
    base = next((part for part in parts if is_position(part)), None)
    entries = _entries(node, parts)
    if path and (base is not None or entries is None):
        yield Place(path, hint, base, type(None) in parts, node)
    for name, below, value in entries or ():
        yield from places(value, below, (*path, name))


def check_sections(node: Any, hint: Any = None, path: tuple[str | int, ...] = ()) -> None:
    """Raises ConfigError for the first section that is not of its annotated class, or whose class cannot be
    one: code can put anything there, and JSON cannot.
    """
    parts = alternatives(hint)
    kinds = tuple(part for part in parts if isinstance(part, type))
    if path and is_section(hint):
        if not isinstance(node, kinds):
            found = "None" if node is None else f"of the class {type(node).__name__}"
            tags = f" ({', '.join(choices(kinds[0]))})" if is_position(kinds[0]) else ""
            raise ConfigError(
                f"{'.'.join(map(str, path))} is {found}; give it an object of {kinds[0].__name__}{tags}"
            )
        if isinstance(node, Variant):
            check_class(type(node))
    for name, below, value in _entries(node, parts) or ():
        check_sections(value, below, (*path, name))


def plain(hint: Any) -> Any:
    """Returns an annotation without its bounds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the annotation itself."""
    hint = plain(hint)
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def without_none(hint: Any) -> Any:
    """Returns the first alternative that is not None, without its bounds."""
    return plain(next(part for part in alternatives(hint) if part is not type(None)))


def is_section(hint: Any) -> bool:
    """Returns whether an annotation is a dataclass or variant, possibly optional."""
    return any(dataclasses.is_dataclass(part) or is_position(part) for part in alternatives(hint))


def _entries(node: Any, parts: tuple[Any, ...]) -> list[tuple[str | int, Any, Any]] | None:
    """Lists name, annotation and value of the entries of a section, mapping or tuple of sections.

    None for a plain value.
    """
    if dataclasses.is_dataclass(node):
        kind: type = type(node)
        hints = field_hints(kind)
        names = [field.name for field in dataclasses.fields(node)]
        return [(name, hints[name], getattr(node, name)) for name in names]
    inner = typing.get_args(plain(parts[0]))
    if isinstance(node, Mapping) and len(parts) == 1 and inner and (node or is_section(inner[1])):
        return [(name, inner[1], value) for name, value in node.items()]
    if isinstance(node, tuple) and node and dataclasses.is_dataclass(node[0]):
        return [(number, inner[0], value) for number, value in enumerate(node)]
    return None
