"""The configuration reference as Markdown: every field of every section and variant, from the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flava_ds.config.bounds import described
from flava_ds.config.field_docs import field_docs, field_hints
from flava_ds.config.places import alternatives, is_section, plain
from flava_ds.config.tree import Config
from flava_ds.config.variants import choices, default_of, find, is_position

PACKAGE = "flava_ds."
UNITS = {
    "s": "s",
    "minutes": "min",
    "mib": "MiB",
    "gib": "GiB",
    "bytes": "bytes",
    "pixels": "pixels",
    "degrees": "degrees",
    "steps": "steps",
    "step": "step",
    "every": "steps",
    "tokens": "tokens",
    "batch_size": "samples",
}
"""Units by the last words of a field's name."""


def reference(own_variants: bool = True) -> str:
    """Returns a table for every section of Config and every variant.

    Without `own_variants`, only the package's variants.
    """
    return markdown(Config, own_variants)


def markdown(tree: type, own_variants: bool = True) -> str:
    """Returns the reference of any tree of dataclasses; see `reference`."""
    return "\n\n".join(_sections(tree, "", "", own_variants, set())) + "\n"


def _sections(
    kind: type, name: str, tag: str, own_variants: bool, seen: set[tuple[type, str]]
) -> Iterator[str]:
    """Yields the table of a section's own fields, then those of its subsections; shared ones only once."""
    hints, meanings = field_hints(kind), field_docs(kind)
    fields = dataclasses.fields(kind)
    title = f"`{name}`" if name else "The run"
    below = {field.name: found for field in fields if (found := _below(hints[field.name]))}
    rows = [
        _row(field, hints[field.name], meanings, name)
        for field in fields
        if field.name not in below or below[field.name][1]
    ]
    parts = [
        f"### {title}{f', `{tag}`' if tag else ''}",
        " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()),
    ]
    if rows:
        heading = ["| field | type | unit | default | bounds | meaning |", "|---|---|---|---|---|---|"]
        parts.append("\n".join([*heading, *rows]))
    yield "\n\n".join(parts)
    for field in fields:
        if field.name not in below:
            continue
        section, suffix = below[field.name]
        place = f"{name}.{field.name}{suffix}" if name else f"{field.name}{suffix}"
        for below_kind, below_tag in _kinds(section, own_variants):
            if (below_kind, place) not in seen:
                seen.add((below_kind, place))
                yield from _sections(below_kind, place, below_tag, own_variants, seen)


def _below(hint: Any) -> tuple[type, str] | None:
    """Returns an annotation's section and the suffix of its name in a mapping or tuple; None for a field."""
    for part in map(plain, alternatives(hint)):
        arguments = typing.get_args(part)
        if is_section(part):
            return part, ""
        if typing.get_origin(part) in (dict, Mapping) and is_section(arguments[1]):
            return next(kind for kind in alternatives(arguments[1]) if is_section(kind)), ".NAME"
        if typing.get_origin(part) is tuple and is_section(arguments[0]):
            return arguments[0], ".NUMBER"
    return None


def _kinds(section: type, own_variants: bool) -> list[tuple[type, str]]:
    """Lists the classes that a section can have, with their tags.

    A position without built-in variants is represented by its base.
    """
    if not is_position(section):
        return [(section, "")]
    known = [(find(section, tag, section.__name__), tag) for tag in choices(section)]
    kinds = [(kind, tag) for kind, tag in known if own_variants or kind.__module__.startswith(PACKAGE)]
    return kinds or [(section, "")]


def _row(field: dataclasses.Field, hint: Any, meanings: Mapping[str, str], section: str) -> str:
    """Returns a field's row of the table."""
    name = f"{section}.{field.name}" if section else field.name
    default = default_of(field)
    shown = "required" if default is dataclasses.MISSING else f"`{_spelled(default)}`"
    bounds = described(hint).rstrip(".")
    for words in ("It must ", " must", "be ", "lie "):
        bounds = bounds.replace(words, "")
    cells = [f"`{name}`", type_name(hint), unit_of(field.name), shown, bounds, meanings.get(field.name, "")]
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(cell: str) -> str:
    """Escapes | and * for Markdown, except inside code."""
    return "`".join(
        part if number % 2 else part.replace("|", r"\|").replace("*", r"\*")
        for number, part in enumerate(cell.split("`"))
    )


def unit_of(name: str) -> str:
    """Returns the unit that a field's name implies."""
    return next((unit for ending, unit in UNITS.items() if name == ending or name.endswith(f"_{ending}")), "")


def type_name(hint: Any) -> str:
    """Formats an annotation's type for readers, e.g. '2 x float' or 'int or none'."""
    parts = [plain(part) for part in alternatives(hint)]
    words = [_one_type(part) for part in parts if part is not type(None)]
    return " or ".join([*words, *(["none"] if type(None) in parts else [])])


def _one_type(hint: Any) -> str:
    """Formats a type other than a union."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        if Ellipsis in arguments:
            return f"list of {type_name(arguments[0])}"
        return f"{len(arguments)} x {type_name(arguments[0])}"
    if origin in (dict, Mapping):
        return f"{type_name(arguments[1])} by name"
    return hint.__name__


def _spelled(value: Any) -> str:
    """Formats a default as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(map(_spelled, value)) or "none"
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_spelled(entry)}" for key, entry in value.items()) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or "''"
