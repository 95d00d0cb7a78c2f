"""`flava-ds plan --tune`: the settings that make steps shortest on this machine, found by real steps."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flava_ds.config import Config
from flava_ds.errors import UserError, number_of
from flava_ds.ranks import launch

if TYPE_CHECKING:
    from flava_ds.autotuning.search import Trial, Tuner
    from flava_ds.scaling.hardware import Gpu
    from flava_ds.scaling.plan import Estimate


def tune(options: argparse.Namespace, config: Config, overrides: list[str]) -> int:
    """Tries settings one after the other, and prints each with its step and what the planner expected of it.
    Returns 0, or 128 + the signal that stopped it.

    Raises: UserError for options of a forecast, for ranks that the batches do not divide by, or if nothing
    trains here.
    """
    from flava_ds.autotuning.guess import Guess, this_cpu
    from flava_ds.autotuning.search import StoppedError, Tuner
    from flava_ds.recipes.outside import absolute
    from flava_ds.scaling.calibration import tuned_file, tuning_folder
    from flava_ds.scaling.sweep_cost import cpu_shares

    refuse_forecasts_options(options)
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
    card = this_gpu() if gpus else this_cpu(config.training.precision)
    guess = Guess(tuner, card, options.captions) if card is not None else None
    print(f"{number_of(ranks, 'rank')} on {'GPUs' if card is None else card.title}")
    if card is not None and not gpus:
        rate = f"{card.flops / 1e9:.0f} GFLOP/s of its matrix products"
        print(f"  planned by FLOPs: at {cpu_shares()} of the {rate}, then at the first trial's rate")
    found: dict[str, tuple[Trial, Estimate | None]] = {}
    try:
        for trial in tuner.search():
            _, plan = found.get(trial.title) or (trial, None if guess is None else guess.expected(trial))
            found[trial.title] = trial, plan
            print(told(trial, plan), flush=True)
    except StoppedError as stopped:
        print(f"  {stopped}; the same command goes on with the trials that are left")
        return stopped.status
    trials, expected = zip(*found.values(), strict=True)
    best = fastest(trials)
    print(f"\n{said(trials[0], best)}\nall trials: {tuned_file(config)}")
    if gpus and card is not None:
        print(f"later plans of this recipe with --gpu {card.name} follow them")
    result = as_json(tuner, trials, expected, best, card.name if gpus and card is not None else None)
    for file in filter(None, [tuned_file(config), options.json]):
        from flava_ds.storage.atomic import write_json

        write_json(file, result)
    return 0


def refuse_forecasts_options(options: argparse.Namespace) -> None:
    """Raises UserError for an option that only a forecast has."""
    for name, given in (
        ("--gpus", options.gpus is not None),
        ("--gpu", options.gpu),
        ("--failures", options.failures),
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


def told(trial: Trial, expected: Estimate | None) -> str:
    """Formats a trial for a line."""
    if trial.step_ms is None:
        return f"  {trial.title}: {trial.reason}"
    plan = "" if expected is None else f", planned {expected.text()}"
    times = [f"{own:.0f}" for own in trial.times_ms]
    again = f" (again: {', '.join(times)})" if len(times) > 1 else ""
    return f"  {trial.title}: {trial.step_ms:.0f} ms a step{again}{plan}, {trial.peak_memory_gib:.2f} GiB"


def fastest(trials: Sequence[Trial]) -> Trial:
    """Returns the trial that is clearly the fastest, by all measurements. Raises: UserError if none is."""
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
    tuner: Tuner, trials: Sequence[Trial], expected: Sequence[Estimate | None], best: Trial, gpu: str | None
) -> dict[str, Any]:
    """Returns all trials and the options of the best one as plain values."""
    return {
        "recipe": tuner.recipe,
        "gpu": gpu,
        "precision": tuner.config().training.precision,
        "ranks": tuner.ranks,
        "options": best.words,
        "trials": [
            {
                "settings": trial.title,
                "options": trial.words,
                "step_ms": trial.step_ms,
                "times_ms": list(trial.times_ms),
                "planned_ms": plan and plan.middle,
                "planned_range_ms": plan and [plan.low, plan.high],
                "peak_memory_gib": trial.peak_memory_gib,
                "reason": trial.reason,
            }
            for trial, plan in zip(trials, expected, strict=True)
        ],
    }
