"""The configuration as command-line options, strict like JSON.

`--optimizer.lr 3e-4` sets a field, `--optimizer lion` selects a variant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from flava_ds.config.bounds import described
from flava_ds.config.field_docs import field_docs, field_hints
from flava_ds.config.places import Place, places
from flava_ds.config.variants import NONE, Variant, find, switched
from flava_ds.errors import ConfigError, did_you_mean, nearest_choice

Settings = TypeVar("Settings")

NARROWEST = 60
"""Columns that --help has at least: with fewer tyro's columns take minutes, and nobody reads them."""


def option_names(node: Any) -> Iterator[str]:
    """Yields every option, e.g. 'training.total-steps' and 'optimizer'; booleans also with a 'no-' prefix."""
    for place in places(node):
        yield place.option
        if isinstance(place.value, bool):
            section, _, name = place.option.rpartition(".")
            yield f"{section}.no-{name}" if section else f"no-{name}"


def override(
    default: Settings, words: list[str], prog: str = "flava-ds train RECIPE", beside: Iterable[str] = ()
) -> Settings:
    """Returns `default` with options such as ['--optimizer.lr', '3e-4'] applied; prints all for --help.

    `beside` are the command's own options, which suggestions for a misspelled option include.

    Raises: ConfigError for an unknown option or an invalid value.
    """
    default, words = switch_variants(default, words)
    if not words:  # as on every rank, which reads a saved configuration
        return default
    check_option_names(default, words, beside)
    return _parse(default, words, prog)


def switch_variants(default: Settings, words: list[str]) -> tuple[Settings, list[str]]:
    """Applies options that select a variant, such as ['--optimizer', 'lion'], outer ones first.

    Returns the new configuration and the remaining words.

    Raises: ConfigError when no variant follows, or an unknown one.
    """
    words = list(words)
    while True:
        positions = {place.option: place for place in places(default) if place.base is not None}
        named = {
            index: word[2:].split("=", 1)[0].replace("_", "-")
            for index, word in enumerate(words)
            if word.startswith("--")
        }
        found = [(len(positions[name].path), index) for index, name in named.items() if name in positions]
        if not found:
            return default, words
        index = min(found)[1]
        place = positions[named[index]]
        if "=" in words[index]:
            tag, rest = words[index].split("=", 1)[1], words[index + 1 :]
        else:
            tag, rest = (words[index + 1 : index + 2] or [""])[0], words[index + 2 :]
        default, words = _replace(default, place.path, _variant(place, tag)), words[:index] + rest


def _variant(place: Place, tag: str) -> Variant | None:
    """Returns the new value of `place` after `--option tag`."""
    label = f"--{place.option}"
    if not tag or tag.startswith("-"):
        raise ConfigError(f"{label} needs one of {', '.join(place.choices())} after it")
    if tag not in place.choices():
        hint = did_you_mean(tag, place.choices())
        raise ConfigError(f"{label} {tag!r} is none of {', '.join(place.choices())}{hint}")
    assert place.base is not None  # switch_variants only passes positions of variants
    return None if tag == NONE else switched(place.value, find(place.base, tag, label), label)


def _replace(node: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Returns a copy of `node` with `value` at `path`."""
    if not path:
        return value
    name: Any = path[0]  # a field name, a mapping key or a tuple index
    below = path[1:]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return dataclasses.replace(node, **{name: _replace(getattr(node, name), below, value)})
    if isinstance(node, Mapping):
        return {**node, name: _replace(node[name], below, value)}
    return (*node[:name], _replace(node[name], below, value), *node[name + 1 :])


def check_option_names(default: Any, words: list[str], beside: Iterable[str] = ()) -> None:
    """Raises ConfigError for the first unknown option, suggesting one of the configuration or of `beside`."""
    known = {"help", *option_names(default)}
    for argument in words:
        if argument == "-h" or not argument.startswith("--"):
            continue
        name = argument[2:].split("=", 1)[0]
        if name.replace("_", "-") not in known:
            raise ConfigError(f"unknown option '--{name}'{suggest(name, known | set(beside))}")


def suggest(name: str, known: set[str]) -> str:
    """Returns '; did you mean ...?': an option with the same last word first, the closest of them or
    else the shortest, then the closest spelling of all.
    """
    dashed = name.replace("_", "-")
    leaf = dashed.rsplit(".", 1)[-1]
    same_leaf = sorted((option for option in known if option.rsplit(".", 1)[-1] == leaf), key=len)
    near = get_close_matches(dashed, same_leaf, n=1)
    if same_leaf:
        return f"; did you mean '--{(near or same_leaf)[0]}'?"
    closest = did_you_mean(f"--{dashed}", [f"--{option}" for option in sorted(known)])
    return closest or "; see `flava-ds config RECIPE` for all of them"


def _parse(default: Settings, words: list[str], prog: str) -> Settings:
    """Applies options to a dataclass through tyro; prints all options for --help.

    Raises: ConfigError with tyro's complaint on one line.
    """
    import tyro  # here, because listing the recipes should not pay for it

    helping = "--help" in words or "-h" in words
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _wide_enough() if helping else contextlib.nullcontext():
            return tyro.cli(
                type(default),
                default=default,
                args=words,
                prog=prog,
                description=describe_variants(default) if helping else "",
                # an optional section has the options of its current value
                config=(tyro.conf.AvoidSubcommands,),
                registry=_described_fields({} if helping else named_fields(default, words)),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        said = _one_line(complaint.getvalue())
        near = nearest_choice(said)
        raise ConfigError(said.removesuffix("." if near else "") + near) from None


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Has tyro find a terminal of NARROWEST columns in place of a narrower one."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(NARROWEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def named_fields(default: Any, words: list[str]) -> dict[int, set[str]]:
    """Returns, for each section that the options in `words` lead to or that stands beside one in a mapping,
    by its identity, which of its fields they name.

    One object may stand in several places; then it has the fields of all.
    """
    named = {word[2:].split("=", 1)[0].replace("_", "-") for word in words if word.startswith("--")}
    named |= {re.sub(r"(^|\.)no-([^.]*)$", r"\1\2", name) for name in named}
    found: dict[int, set[str]] = {}

    def visit(node: Any, path: str) -> None:
        if dataclasses.is_dataclass(node):
            entries = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        elif isinstance(node, Mapping):
            entries = dict(node)
        elif isinstance(node, tuple):
            entries = {str(number): entry for number, entry in enumerate(node)}
        else:
            return
        own = found.setdefault(id(node), set())
        for name, value in entries.items():
            option = f"{path}{name}".replace("_", "-")
            if any(word == option or word.startswith(f"{option}.") for word in named):
                own.add(name)
            elif dataclasses.is_dataclass(node):
                continue
            visit(value, f"{option}.")

    visit(default, "")
    return found


def _described_fields(named: Mapping[int, Collection[str]]) -> Any:
    """Returns a tyro registry that adds each field's meaning and bounds to --help.

    Of a section in `named` it has only those fields and no meanings, and the other fields keep their values:
    tyro takes a millisecond for each, and a configuration has hundreds.
    """
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec

    registry = ConstructorRegistry()

    @registry.struct_rule
    def section(info: Any) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.default) or isinstance(info.default, type):
            return None
        kind = type(info.default)
        wanted = named.get(id(info.default))
        hints, meanings = field_hints(kind), field_docs(kind) if wanted is None else {}
        fields = [
            StructFieldSpec(
                name=field.name,
                type=hints[field.name],
                default=getattr(info.default, field.name),
                helptext=" ".join(filter(None, (meanings.get(field.name), described(hints[field.name]))))
                or None,
            )
            for field in dataclasses.fields(kind)
            if wanted is None or field.name in wanted
        ]
        keeping = functools.partial(dataclasses.replace, info.default)
        return StructConstructorSpec(instantiate=keeping, fields=tuple(fields))

    return registry


def describe_variants(default: Any) -> str:
    """Describes the configuration, its exchangeable sections, and what a new variant keeps, for --help."""
    lines = [
        f"--{place.option} {{{','.join(place.choices())}}}"
        for place in places(default)
        if place.base is not None
    ]
    rule = (
        "Sections that can be exchanged as a whole. The new variant has its own defaults, but keeps every "
        "field of the same name and type that had been changed from its default:"
    )
    return "\n".join([inspect.getdoc(default) or "", *(["", rule, *lines] if lines else [])])


def _one_line(box: str) -> str:
    """Flattens tyro's framed message to its first paragraph, without the title, which repeats it."""
    untitled = re.sub(r"^╭.*$", "", box, count=1, flags=re.MULTILINE)
    body = re.split(r"^│ ?─{3,}.*$", untitled, maxsplit=1, flags=re.MULTILINE)[0]
    words = re.sub(r"[╭╮╰╯│─]+", " ", body).split()
    return " ".join(words) or "the options could not be read; see --help"
