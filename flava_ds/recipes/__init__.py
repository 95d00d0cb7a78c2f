"""Recipes: complete configurations as Python functions, found by name and overridden strictly from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flava_ds import config as configuration
from flava_ds.config import Config, did_you_mean
from flava_ds.errors import ConfigError
from flava_ds.recipes.demo import demo
from flava_ds.recipes.flava_base import flava_base
from flava_ds.recipes.flava_debug import flava_debug
from flava_ds.recipes.flava_large import flava_large

Settings = TypeVar("Settings")

RECIPES: dict[str, Callable[[], Config]] = {function.__name__: function for function in (demo, flava_base, flava_large, flava_debug)}


def resolve(recipe: str, overrides: list[str], beside: Iterable[str] = ()) -> Config:
    """Builds the configuration of a run: the recipe, or a saved config.json, with `overrides` such as ['--optimizer.lr', '3e-4'] on top.

    `beside` names the options that the command itself takes, so that one of them can be what a mistyped option meant.

    Raises: ConfigError on an unknown recipe, an unknown or malformed option, or a combination that cannot run.
    """
    default = load_recipe(recipe)
    check_option_names(default, overrides, beside)
    return configuration.check(without_idle_sources(parse_overrides(default, overrides)))


def without_idle_sources(config: Config) -> Config:
    """Drops the sources that no step will draw, so that nothing looks for their shards."""
    if config.data.weight_changes:
        return config
    sources = tuple(source for source in config.data.sources if source.weight != 0)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources)) if sources else config


def load_recipe(recipe: str) -> Config:
    """Calls the recipe of this name, or reads the saved configuration at this path.

    Raises: ConfigError when there is neither.
    """
    if recipe in RECIPES:
        return RECIPES[recipe]()
    path = Path(recipe)
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; give the config.json of a run, or one of the recipes {', '.join(RECIPES)}")
        return configuration.load(path)
    suggestion = did_you_mean(recipe, RECIPES) or f"; choose one of {', '.join(RECIPES)}, or give the path of a saved config.json"
    raise ConfigError(f"no recipe named '{recipe}'{suggestion}")


def option_names(node: Any, prefix: str = "") -> Iterator[str]:
    """Yields every option of a configuration, e.g. 'training.total-steps' and 'data.sources.0.shards'; switches also in their 'no-' form."""
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from option_names(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for position, entry in enumerate(value):
                yield from option_names(entry, f"{prefix}{name}.{position}.")
        else:
            yield f"{prefix}{name}"
            if isinstance(value, bool):
                yield f"{prefix}no-{name}"


def check_option_names(default: Any, overrides: list[str], beside: Iterable[str] = ()) -> None:
    """Raises ConfigError with a suggestion, one of `beside` included, for the first option that the configuration does not have."""
    known = {"help", *option_names(default)}
    for argument in overrides:
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


def parse_overrides(default: Settings, overrides: list[str], prog: str = "flava-ds train RECIPE") -> Settings:
    """Applies command-line options to a dataclass through tyro, and prints the list of all options for --help.

    Raises: ConfigError with tyro's complaint on one line.
    """
    import tyro  # here, because the list of recipes must not cost it

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(type(default), default=default, args=overrides, prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(complaint.getvalue())) from None


def _one_line(box: str) -> str:
    """Flattens tyro's framed message to its first paragraph; the title, on the upper edge of the frame, repeats it."""
    body = re.split(r"^│ ?─{3,}.*$", re.sub(r"^╭.*$", "", box, count=1, flags=re.MULTILINE), maxsplit=1, flags=re.MULTILINE)[0]
    words = re.sub(r"[╭╮╰╯│─]+", " ", body).split()
    return " ".join(words) or "the options could not be read; see --help"
