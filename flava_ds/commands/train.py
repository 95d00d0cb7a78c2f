"""Composes the command that trains a configuration, after a look at all that it will read."""

from __future__ import annotations

import argparse

from flava_ds.config import Config
from flava_ds.errors import UserError
from flava_ds.ranks import launch
from flava_ds.recipes.outside import absolute


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options of `flava-ds train` that cannot work."""
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: use at least 1")
    if options.max_restarts < 0:
        raise UserError(f"--max-restarts {options.max_restarts}: use at least 0")
    if options.max_restarts and options.master_port is not None:
        raise UserError(
            "--master-port is for the deepspeed launcher; with --max-restarts, torchrun takes a free "
            "port, so leave it out"
        )


def check_run(options: argparse.Namespace, config: Config) -> int:
    """Looks for what a run reads and whether its batches divide; returns the ranks that it will have.

    Raises: UserError naming what is missing or does not divide.
    """
    if options.ranks is not None:
        launch.check_batches(config, options.ranks)  # first, because counting GPUs imports torch
    launch.check_inputs(config)
    ranks = options.ranks or max(1, launch.count_gpus())
    launch.check_batches(config, ranks)
    return ranks


def compose(
    options: argparse.Namespace, recipe: str, overrides: list[str], ranks: int, plugins: list[str]
) -> launch.Launch:
    """Returns the command that trains `recipe` with `overrides` on `ranks` ranks of this machine."""
    recipe, gpus = absolute(recipe), launch.count_gpus()
    words = [*(f"--plugin={absolute(place)}" for place in plugins), *overrides]
    if options.max_restarts:
        return launch.plan_supervised(
            recipe, words, ranks=ranks, gpus=gpus, restarts=options.max_restarts, debug=options.debug
        )
    return launch.plan_launch(
        recipe, words, ranks=ranks, gpus=gpus, port=options.master_port, debug=options.debug
    )
