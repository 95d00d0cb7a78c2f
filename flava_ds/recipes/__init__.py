"""Recipes: complete configurations as Python functions, with strict overrides from the command line."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from flava_ds import config as configuration
from flava_ds.config import Config, did_you_mean
from flava_ds.config.new_sources import add_sources
from flava_ds.config.options import override
from flava_ds.errors import ConfigError
from flava_ds.recipes import outside, partial
from flava_ds.recipes.stages import Stages


class Recipes(Mapping[str, Callable[[], Any]]):
    """The package's recipes by name: the function of that name in the module of that name. `FAMILY/ROW` is
    the function of a family of recipes, called with a row's name.

    A module is imported when its recipe is looked up.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getitem__(self, name: str) -> Callable[[], Any]:
        if name not in self.names:
            raise KeyError(name)
        family, _, row = name.partition("/")
        function = getattr(importlib.import_module(f"{__name__}.{family}"), family)
        return functools.partial(function, row) if row else function

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without importing it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


RECIPES = Recipes(
    "demo",
    "flava_tiny",
    "flava_base",
    "flava_large",
    "flava_debug",
    "clip_base",
    "demo_clip",
    "dino_base",
    "mim_base",
    "mlm_base",
    "demo_simclr",
    "demo_dino",
    "demo_mim",
    "demo_mlm",
    "demo_generate",
    "bert_base",
    "demo_bert",
    "vilt_base",
    "demo_vilt",
    "albef_base",
    "demo_albef",
    "align_base",
    "demo_align",
    "vinvl_base",
    "demo_vinvl",
    "vlbert_base",
    "demo_vlbert",
    "uniter_base",
    "demo_uniter",
    "visualbert_base",
    "unit_base",
    "demo_unit",
    "demo_visualbert",
    "simvlm_base",
    "demo_simvlm",
    "lxmert_base",
    "demo_lxmert",
    "vilbert_base",
    "demo_vilbert",
    "ablation/mim",
    "ablation/mlm",
    "ablation/flava_c_local",
    "ablation/flava_c",
    "ablation/flava_mm",
    "ablation/flava_no_init",
    "ablation/clip",
    "ablation/flava_mm_equal_compute",
    "ablation/flava_no_init_equal_compute",
    "ablation/flava_no_init_uncertainty",
    "ablation/flava_no_init_gradnorm",
    "ablation/untrained",
)
SEQUENCES = Recipes(
    "flava_base_full", "flava_base_full/mim", "flava_base_full/released", "demo_full", "ablation/flava"
)
"""Those that are several runs in a row: functions that return Stages."""
WAYS = "the path of a saved config.json, a FILE.yaml or .json with `base: RECIPE`, or FILE.py:FUNCTION"
"""Alternatives to a recipe's name."""


def resolve(recipe: str, overrides: list[str], beside: Iterable[str] = ()) -> Config:
    """Builds a run's configuration: a recipe or saved config.json, plus `overrides` like ['--seed', '1'].

    `beside` names the command's own options, for suggestions when an option is mistyped.

    Raises: ConfigError on an unknown recipe, an unknown or malformed option, or an impossible combination.
    """
    config = add_sources(load_recipe(recipe, checked=not overrides), overrides)
    try:
        return configuration.check(without_idle_sources(override(config, overrides, beside=beside)))
    except ConfigError as error:
        if overrides and Path(recipe).is_file() and (own := _slip_of(recipe)).endswith(str(error)):
            raise ConfigError(own) from error
        raise


def _slip_of(recipe: str) -> str:
    """Returns what does not fit together in a file by itself, with the file's name; empty if all does."""
    try:
        load_recipe(recipe)
    except ConfigError as error:
        return str(error)
    return ""


def check_code(recipe: str, config: Config, overrides: list[str], plugins: list[str]) -> None:
    """Refuses code that the file at `recipe` names and the command line does not, before anything runs it.

    Raises: ConfigError.
    """
    is_data = recipe not in RECIPES and not outside.is_outside(recipe)
    outside.check_task_files(config, overrides, plugins, is_data=is_data)


def without_idle_sources(config: Config) -> Config:
    """Drops sources that no step will draw, so that their shards need not exist; keeps the others' names."""
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


def load_recipe(recipe: str, depth: int = 0, checked: bool = True) -> Config:
    """Calls the recipe of this name or at this place, or reads the configuration at this path.

    `depth` counts the files that stand on it, which may not name code. Without `checked`, options that come
    after it may mend what does not fit together in a file.

    Raises: ConfigError if there is none.
    """
    if recipe in RECIPES:
        return RECIPES[recipe]()
    if depth and outside.is_outside(recipe):  # before anything imports it
        raise ConfigError(
            f"base '{recipe}' is code, which a file cannot name; give a recipe of the package or a "
            "file, or start from the code and set fields by options"
        )
    if load_sequence(recipe) is not None:
        raise ConfigError(
            f"'{recipe}' is several runs in a row; `flava-ds train {recipe}` runs them, and everything else "
            "takes the recipe of one run, such as that of a stage (docs/stages.md)"
        )
    path = Path(recipe)
    if outside.is_outside(recipe):
        return cast(Config, outside.call(recipe))
    if path.suffix == ".json" or partial.is_yaml(path) or path.is_file():
        if not path.is_file():
            beside = [own.name for own in path.parent.glob("*") if own.suffix in (".json", ".yaml", ".yml")]
            hint = did_you_mean(path.name, sorted(beside)) or (
                f"; give the config.json of a run, or one of the recipes {', '.join(RECIPES)}"
            )
            raise ConfigError(f"{path}: no such file{hint}")
        return partial.read(path, load_recipe, depth, checked)
    if path.is_dir():
        saved = path / "config.json"
        how = (
            f"is a run's folder; give {saved}, with which `flava-ds train` goes on"
            if saved.is_file()
            else f"is a folder, not a recipe; give {WAYS}"
        )
        raise ConfigError(f"{recipe}: {how}")
    outside.check_module(recipe)
    suggestion = (
        did_you_mean(recipe, [*RECIPES, *SEQUENCES])
        or f"; choose one of {', '.join(RECIPES)}, or give {WAYS}"
    )
    raise ConfigError(f"no recipe named '{recipe}'{suggestion}")


def load_sequence(recipe: str | None) -> Stages | None:
    """Calls the recipe of this name or location if it is several runs in a row; None for any other.

    Raises: ConfigError if its code fails.
    """
    if recipe is None:
        return None
    if recipe in SEQUENCES:
        return SEQUENCES[recipe]()
    found = outside.call(recipe) if outside.is_outside(recipe) else None
    return found if isinstance(found, Stages) else None
