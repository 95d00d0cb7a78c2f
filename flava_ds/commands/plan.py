"""`flava-ds plan`: memory, time and cost of a run on GPUs that need not be there."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds.commands.local_path import report_path
from flava_ds.errors import UserError

if TYPE_CHECKING:
    from flava_ds.config import Config


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments; RECIPE and its fields are added by the caller."""
    command.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs of the run (default: 8 for each of --nodes)"
    )
    command.add_argument("--gpu", metavar="NAME", help="a100, h100, h200, b200, ... (default: h100)")
    command.add_argument(
        "--nodes", type=int, metavar="N", help="machines (default: one, or one for each 8 of --gpus)"
    )
    command.add_argument(
        "--network", metavar="NAME", help="between machines: ib-400x8 (default), ethernet-100, ..."
    )
    command.add_argument(
        "--captions",
        metavar="SHARDS_OR_JSON",
        help="lengths of the pairs' texts: shards, or a .json of {\"tokens\": count} (default: PMD's means)",
    )
    command.add_argument(
        "--price-per-gpu-hour", type=float, metavar="X", help="in any currency, for the cost"
    )
    command.add_argument(
        "--calibration",
        metavar="FILE",
        help="tuned.json of an earlier --tune on this GPU, whose measured steps times follow; none: nothing "
        "(default: the recipe's own, if it was tuned on this GPU)",
    )
    command.add_argument("--json", type=report_path, metavar="FILE", help="write all numbers as JSON")
    command.add_argument("--page", type=report_path, metavar="FILE.html", help="write one page with plots")
    command.add_argument("--simulate", action="store_true", help="simulate the run with its failures, too")
    command.add_argument(
        "--scale", metavar="N,N,...", help="with --simulate: numbers of GPUs to compare, e.g. 8,64,512,4096"
    )
    command.add_argument(
        "--failures",
        choices=["llama3", "rsc", "rsc-small", "opt", "none"],
        help="with --simulate: whose rate of failures (default: rsc-small)",
    )
    command.add_argument(
        "--tune",
        action="store_true",
        help="take real steps on this machine instead, and find the settings that make them shortest",
    )
    command.add_argument(
        "--ranks", type=int, metavar="N", help="with --tune: processes (default: one per GPU)"
    )


def run(options: argparse.Namespace, overrides: list[str], resolve: Callable[[list[str]], Config]) -> int:
    """Prints the plan of a recipe and writes what was asked for; returns the exit status.

    `resolve` reads the recipe with options, which loads torch; a plan like one of before needs neither.

    Raises: UserError for unknown names, batches that do not divide, or a model that fits nowhere.
    """
    from flava_ds.scaling.hardware import cluster

    if options.tune:
        from flava_ds.commands.tune import tune

        return tune(options, resolve(overrides), overrides)
    check_options(options)
    machines = cluster(options.gpu or "h100", options.gpus, options.nodes, options.network)
    from flava_ds.scaling import advice, scales, table
    from flava_ds.scaling.calibration import calibration_for
    from flava_ds.scaling.captions import lengths_of
    from flava_ds.scaling.facts import Run
    from flava_ds.scaling.failures import RATES
    from flava_ds.scaling.plan import plan
    from flava_ds.scaling.setting import Measured, setting_of

    recipe = Run(options.recipe, overrides, options.plugin, resolve)
    facts = recipe.facts()
    for name in facts.drawn_sources:
        facts.micro_batch_size(name, machines.gpus)  # before anything is measured
    counts = scales.parse_scale(options.scale, machines.gpus)
    lengths = lengths_of(recipe, options.captions)
    measured = Measured(recipe, lengths)
    tuned, gpu = Path(facts.tuned), machines.gpu.name
    calibration = calibration_for(options.calibration, tuned, gpu, facts.precision)
    setting = replace(setting_of(facts, machines, measured), calibration=calibration)
    made = plan(setting)
    fix = advice.refuse_if_it_fits_nowhere(made, measured)
    helps = advice.advise(made, measured)
    print(table.report(made, lengths, helps, fix, options.price_per_gpu_hour))
    found = table.as_json(made, lengths, helps, fix, options.price_per_gpu_hour)
    simulated = (
        print_simulation(made.setting, counts, RATES[options.failures or "rsc-small"])
        if options.simulate
        else []
    )
    if simulated:
        found["simulated"] = [scales.as_json(each) for each in simulated]
    if options.json is not None:
        from flava_ds.storage.atomic import write_json

        write_json(options.json, found)
    if options.page is not None:
        from flava_ds.report.plan_page import write_plan_page

        price = options.price_per_gpu_hour
        print(f"\n{write_plan_page(options.page, made, lengths, helps, fix, price, simulated)}")
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    if options.ranks is not None:
        raise UserError("--ranks is for --tune; --gpus is the number of GPUs of a plan")
    if options.price_per_gpu_hour is not None and not 0 <= options.price_per_gpu_hour < math.inf:
        raise UserError(f"--price-per-gpu-hour {options.price_per_gpu_hour:g}: use a number of at least 0")
    if options.scale and not options.simulate:
        raise UserError("--scale is for --simulate; add it")
    if options.failures and not options.simulate:
        raise UserError("--failures is for --simulate; add it")


def print_simulation(setting: Any, counts: list[int], rate: Any) -> Any:
    """Simulates the run on several numbers of GPUs and prints what they would lose, and to what."""
    from flava_ds.scaling import scales
    from flava_ds.scaling.table import render

    found = scales.simulate(setting, counts, rate)
    print(f"\nSimulated with failures ({rate.source}); per cent of the wall time by cause")
    for weak, words in (
        (False, "the same batch in all (strong scaling)"),
        (True, "the same on each GPU (weak)"),
    ):
        print(f"\n  {words}\n{render(scales.scale_rows(found, weak))}")
    return found
