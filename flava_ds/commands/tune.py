"""`flava-ds plan --tune`: the settings that make steps shortest on this machine, found by real steps."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
from typing import TYPE_CHECKING, Any

from flava_ds.config import Config
from flava_ds.errors import UserError
from flava_ds.ranks import launch

if TYPE_CHECKING:
    from flava_ds.autotuning.search import Trial, Tuner
    from flava_ds.scaling.hardware import Gpu
    from flava_ds.scaling.setting import Measured


def tune(options: argparse.Namespace, config: Config, overrides: list[str]) -> int:
    """Tries settings one after the other, and prints each with its step and what the planner expected of it.

    Raises: UserError for options of a forecast, for ranks that the batches do not divide by, or if nothing
    trains here.
    """
    from flava_ds.autotuning.search import Tuner
    from flava_ds.recipes.outside import absolute
    from flava_ds.scaling.calibration import tuned_file, tuning_folder
    from flava_ds.scaling.captions import lengths_of
    from flava_ds.scaling.setting import Measured

    for name, given in (
        ("--simulate", options.simulate),
        ("--page", options.page),
        ("--scale", options.scale),
        ("--nodes", options.nodes),
        ("--network", options.network),
        ("--price-per-gpu-hour", options.price_per_gpu_hour is not None),
        ("--calibration", options.calibration),
    ):
        if given:
            raise UserError(f"{name} is for a forecast, --tune measures on this machine; leave one out")
    gpus = launch.count_gpus()
    ranks = max(1, gpus) if options.ranks is None else options.ranks
    launch.check_ranks(ranks, gpus)
    launch.check_batches(config, ranks)
    launch.provide_demo_data(config)
    tuner = Tuner(
        recipe=options.recipe,
        overrides=overrides,
        plugins=tuple(absolute(own) for own in options.plugin),
        ranks=ranks,
        gpus=gpus,
        device=device_of(gpus),
        folder=tuning_folder(config),
    )
    card = this_gpu() if gpus else None
    measured = Measured(config, lengths_of(config, options.captions)) if card is not None else None
    print(f"{ranks} rank{'s' * (ranks > 1)} on {'a CPU' if not gpus else card.title if card else 'GPUs'}")
    trials, expected = [], []
    for trial in tuner.search():
        trials.append(trial)
        expected.append(None if card is None or measured is None else forecast(tuner, trial, card, measured))
        print(told(trial, expected[-1]), flush=True)
    found = fastest(trials)
    print(f"\n{said(trials[0], found)}\nall trials: {tuned_file(config)}")
    if card is not None:
        print(f"later plans of this recipe with --gpu {card.name} follow them")
    result = as_json(tuner, trials, expected, found, card)
    for file in filter(None, [tuned_file(config), options.json]):
        from flava_ds.storage.atomic import write_whole

        write_whole(file, json.dumps(result, indent=2) + "\n")
    return 0


def device_of(gpus: int) -> str:
    """Names what this machine computes with."""
    import torch

    return torch.cuda.get_device_name(0) if gpus else f"{platform.machine()}, {os.cpu_count()} cores"


def this_gpu() -> Gpu | None:
    """Returns this machine's GPU, if the planner knows it."""
    import torch

    from flava_ds.scaling.hardware import like_device

    properties = torch.cuda.get_device_properties(0)
    return like_device(properties.name, properties.total_memory / 2**30)


def forecast(tuner: Tuner, trial: Trial, card: Gpu, measured: Measured) -> float | None:
    """Returns the planner's ms per step of a trial's settings; None if it cannot plan them."""
    from flava_ds.errors import ConfigError
    from flava_ds.scaling.facts import Facts
    from flava_ds.scaling.hardware import DEFAULT_NETWORK, NETWORKS, Cluster
    from flava_ds.scaling.plan import forecast as planned
    from flava_ds.scaling.setting import setting_of

    machine = Cluster(card, NETWORKS[DEFAULT_NETWORK], tuner.ranks, 1)
    try:
        return planned(setting_of(Facts.of(tuner.config(trial.choices)), machine, measured)).step_ms
    except ConfigError:
        return None


def told(trial: Trial, expected: float | None) -> str:
    """Formats a trial for a line."""
    if trial.step_ms is None:
        return f"  {trial.title}: {trial.reason}"
    plan = "" if expected is None else f", planned {expected:.0f}"
    return f"  {trial.title}: {trial.step_ms:.0f} ms a step{plan}, {trial.peak_memory_gib:.2f} GiB"


def fastest(trials: list[Trial]) -> Trial:
    """Returns the trial that the search ended with. Raises: UserError if none has trained."""
    from flava_ds.autotuning.search import better

    best = trials[0]
    for trial in trials[1:]:
        best = better(best, trial)
    if best.step_ms is None:
        raise UserError("no setting fits into this machine's memory; a smaller batch or model, or more ranks")
    return best


def said(first: Trial, best: Trial) -> str:
    """Formats what the search found."""
    if best is first:
        return "nothing is clearly faster than the configuration itself"
    gain = "" if first.step_ms is None else f", {first.step_ms / best.step_ms:.2f} x as fast as configured"  # type: ignore[operator]
    return f"fastest: {best.title}{gain}\n  {shlex.join(best.words)}"


def as_json(
    tuner: Tuner, trials: list[Trial], expected: list[float | None], best: Trial, card: Gpu | None
) -> dict[str, Any]:
    """Returns all trials and the options of the best one as plain values."""
    return {
        "recipe": tuner.recipe,
        "gpu": card.name if card is not None else None,
        "ranks": tuner.ranks,
        "options": best.words,
        "trials": [
            {
                "settings": trial.title,
                "options": trial.words,
                "step_ms": trial.step_ms,
                "planned_ms": plan,
                "peak_memory_gib": trial.peak_memory_gib,
                "reason": trial.reason,
            }
            for trial, plan in zip(trials, expected, strict=True)
        ],
    }
