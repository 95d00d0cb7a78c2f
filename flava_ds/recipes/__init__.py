"""Recipes: complete configurations as Python functions, found by name or place and overridden strictly from
the command line.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flava_ds import config as configuration
from flava_ds.config import Config, did_you_mean
from flava_ds.config.options import override
from flava_ds.errors import ConfigError
from flava_ds.recipes import outside


class Recipes(Mapping[str, Callable[[], Config]]):
    """The recipes of the package by name; each is the function of that name in the module of that name,
    imported when it is looked up.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getitem__(self, name: str) -> Callable[[], Config]:
        if name not in self.names:
            raise KeyError(name)
        return getattr(importlib.import_module(f"{__name__}.{name}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


RECIPES = Recipes("demo", "flava_base", "flava_large", "flava_debug", "clip_base", "demo_clip")
WAYS = "the path of a saved config.json, or FILE.py:FUNCTION"
"""What may stand in place of a recipe's name."""


def resolve(recipe: str, overrides: list[str], beside: Iterable[str] = ()) -> Config:
    """Builds the configuration of a run: the recipe, or a saved config.json, with `overrides` such as
    ['--optimizer.lr', '3e-4'] on top.

    `beside` names the options that the command itself takes, so that one of them can be what a mistyped
    option meant.

    Raises: ConfigError on an unknown recipe, an unknown or malformed option, or a combination that cannot
    run.
    """
    return configuration.check(without_idle_sources(override(load_recipe(recipe), overrides, beside=beside)))


def without_idle_sources(config: Config) -> Config:
    """Drops the sources that no step will draw, so that nothing looks for their shards; the others keep their
    names, and so their order.
    """
    drawn = config.drawn_sources
    if not drawn or len(drawn) == len(config.data.sources):
        return config
    changes = tuple(
        dataclasses.replace(
            change,
            weights={name: weight for name, weight in change.weights.items() if name in drawn}
            if change.weights
            else None,
        )
        for change in config.data.weight_changes
    )
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=drawn, weight_changes=changes)
    )


def load_recipe(recipe: str) -> Config:
    """Calls the recipe of this name or at this place, or reads the saved configuration at this path.

    Raises: ConfigError when there is none.
    """
    if recipe in RECIPES:
        return RECIPES[recipe]()
    path = Path(recipe)
    if outside.is_outside(recipe):
        return outside.call(recipe)
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file; give the config.json of a run, or one of the recipes "
                f"{', '.join(RECIPES)}"
            )
        return configuration.load(path)
    suggestion = did_you_mean(recipe, RECIPES) or f"; choose one of {', '.join(RECIPES)}, or give {WAYS}"
    raise ConfigError(f"no recipe named '{recipe}'{suggestion}")
