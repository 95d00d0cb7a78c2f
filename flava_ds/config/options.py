"""The configuration as command-line options: `--optimizer.lr 3e-4` sets a field, `--optimizer lion` exchanges a variant. Strict, as JSON is."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from flava_ds.config.variants import NONE, Variant, choices, find, is_position, switched
from flava_ds.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")


class Place(NamedTuple):
    """A value in the tree that the command line can set or exchange."""

    option: str
    """Its name without the dashes in front, e.g. 'data.shuffle-block-size'."""
    path: tuple[str | int, ...]
    """The fields, keys and positions that lead to it."""
    base: type[Variant] | None
    """The base of the variants that may stand there; None for a field."""
    optional: bool
    """Whether it may be empty (None)."""
    value: Any

    def choices(self) -> list[str]:
        """Lists what the command line may put there."""
        return [*choices(self.base), *([NONE] if self.optional else [])] if self.base else []


def places(node: Any, hint: Any = None, path: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Yields every field under a configuration, and every position of a variant before the fields of that variant."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    base = next((part for part in parts if is_position(part)), None)
    entries = _entries(node, hint)
    if path and (base is not None or entries is None):
        yield Place(".".join(str(name).replace("_", "-") for name in path), path, base, type(None) in parts, node)
    for name, below, value in entries or ():
        yield from places(value, below, (*path, name))


def _entries(node: Any, hint: Any) -> list[tuple[str | int, Any, Any]] | None:
    """Lists name, annotation and value of what a section, a mapping or a tuple of sections holds; None for what is one option."""
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(node):
        hints = typing.get_type_hints(type(node))
        return [(field.name, hints[field.name], getattr(node, field.name)) for field in dataclasses.fields(node)]
    if typing.get_origin(hint) in (dict, Mapping) and (node or _is_section(arguments[1])):
        return [(name, arguments[1], value) for name, value in node.items()]
    if isinstance(node, tuple) and node and dataclasses.is_dataclass(node[0]):
        return [(number, arguments[0], value) for number, value in enumerate(node)]
    return None


def _is_section(hint: Any) -> bool:
    """Says whether an annotation asks for a dataclass or a variant."""
    return any(dataclasses.is_dataclass(part) or is_position(part) for part in (hint, *typing.get_args(hint)))


def option_names(node: Any) -> Iterator[str]:
    """Yields every option of a configuration, e.g. 'training.total-steps' and 'optimizer'; switches also in their 'no-' form."""
    for place in places(node):
        yield place.option
        if isinstance(place.value, bool):
            section, _, name = place.option.rpartition(".")
            yield f"{section}.no-{name}" if section else f"no-{name}"


def override(default: Settings, words: list[str], prog: str = "flava-ds train RECIPE", beside: Iterable[str] = ()) -> Settings:
    """Returns `default` with command-line options such as ['--optimizer.lr', '3e-4'] applied; prints the list of them for --help.

    `beside` names the options that the command itself takes, so that one of them can be what a mistyped option meant.

    Raises: ConfigError on an unknown option, or on a value that does not fit.
    """
    default, words = switch_variants(default, words)
    check_option_names(default, words, beside)
    return _parse(default, words, prog)


def switch_variants(default: Settings, words: list[str]) -> tuple[Settings, list[str]]:
    """Carries out the words that exchange a variant, such as ['--optimizer', 'lion'], outer ones first; returns the others as well.

    Raises: ConfigError when no variant follows, or an unknown one.
    """
    words = list(words)
    while True:
        positions = {place.option: place for place in places(default) if place.base is not None}
        named = {index: word[2:].split("=", 1)[0].replace("_", "-") for index, word in enumerate(words) if word.startswith("--")}
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
    """Returns what stands at `place` after `--option tag`."""
    label = f"--{place.option}"
    if not tag or tag.startswith("-"):
        raise ConfigError(f"{label} needs one of {', '.join(place.choices())} after it")
    if tag not in place.choices():
        raise ConfigError(f"{label} {tag!r} is none of {', '.join(place.choices())}{did_you_mean(tag, place.choices())}")
    return None if tag == NONE else switched(place.value, find(place.base, tag, label), label)


def _replace(node: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Returns a copy of `node` with another value at `path`."""
    if not path:
        return value
    name, below = path[0], path[1:]
    if dataclasses.is_dataclass(node):
        return dataclasses.replace(node, **{name: _replace(getattr(node, name), below, value)})
    if isinstance(node, Mapping):
        return {**node, name: _replace(node[name], below, value)}
    return (*node[:name], _replace(node[name], below, value), *node[name + 1 :])


def check_option_names(default: Any, words: list[str], beside: Iterable[str] = ()) -> None:
    """Raises ConfigError with a suggestion, one of `beside` included, for the first option that the configuration does not have."""
    known = {"help", *option_names(default)}
    for argument in words:
        if argument == "-h" or not argument.startswith("--"):
            continue
        name = argument[2:].split("=", 1)[0]
        if name.replace("_", "-") not in known:
            raise ConfigError(f"unknown option '--{name}'{suggest(name, known | set(beside))}")


def suggest(name: str, known: set[str]) -> str:
    """Returns '; did you mean ...?': the same last word elsewhere in the tree first, then the nearest spelling."""
    dashed = name.replace("_", "-")
    same_leaf = sorted((option for option in known if option.rsplit(".", 1)[-1] == dashed.rsplit(".", 1)[-1]), key=len)
    if same_leaf:
        return f"; did you mean '--{same_leaf[0]}'?"
    return did_you_mean(f"--{dashed}", [f"--{option}" for option in sorted(known)]) or "; see `flava-ds config RECIPE` for all of them"


def _parse(default: Settings, words: list[str], prog: str) -> Settings:
    """Applies options to a dataclass through tyro, and prints the list of all options for --help.

    Raises: ConfigError with tyro's complaint on one line.
    """
    import tyro  # here, because the list of recipes must not cost it

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                default=default,
                args=words,
                prog=prog,
                description=describe_variants(default),
                config=(tyro.conf.AvoidSubcommands,),  # an optional section has the options of what stands there
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(complaint.getvalue())) from None


def describe_variants(default: Any) -> str:
    """Says in the help what is configured, which sections can be exchanged, and what a new one keeps."""
    lines = [f"--{place.option} {{{','.join(place.choices())}}}" for place in places(default) if place.base is not None]
    rule = (
        "Sections that can be exchanged as a whole. The new one has its own defaults, and keeps the fields of the same name and type that had "
        "been set to something else than the old one's default:"
    )
    return "\n".join([inspect.getdoc(default) or "", *(["", rule, *lines] if lines else [])])


def _one_line(box: str) -> str:
    """Flattens tyro's framed message to its first paragraph; the title, on the upper edge of the frame, repeats it."""
    body = re.split(r"^│ ?─{3,}.*$", re.sub(r"^╭.*$", "", box, count=1, flags=re.MULTILINE), maxsplit=1, flags=re.MULTILINE)[0]
    words = re.sub(r"[╭╮╰╯│─]+", " ", body).split()
    return " ".join(words) or "the options could not be read; see --help"
