"""`flava-ds sweep`: plans, runs, continues and compares the runs of a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds.commands.sweep_runs import (
    check_earlier,
    config_of,
    names_run,
    planned,
    waiting,
    with_asked,
    with_facts,
)
from flava_ds.config import Config
from flava_ds.errors import UserError, number_of

if TYPE_CHECKING:
    from flava_ds.scaling.hardware import Cluster
    from flava_ds.scaling.sweep import Sweep


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = command.add_argument
    add("sweep", metavar="SPEC_OR_FOLDER", type=Path, help="YAML or JSON, or a sweep's folder to go on with")
    add("--folder", type=Path, metavar="DIR", help="the sweep's folder (default: RUNS/NAME_OF_THE_SWEEP)")
    add("--yes", action="store_true", help="do not ask after the estimate")
    add("--dry-run", action="store_true", help="list the runs, estimate them, and stop")
    add("--status", action="store_true", help="of a folder: show states, write results.csv and sweep.html")
    add("--parquet", action="store_true", help="also write results.parquet (extra `prepare`)")
    add("--ranks", type=int, metavar="N", help="processes of a run on this machine (default: one per GPU)")
    add("--part", metavar="NAME", help="only runs of this part of the sweep")
    add("--most", type=int, metavar="N", help="start at most N runs now")
    add("--hostfile", type=Path, metavar="FILE", help="each run on these machines, by the deepspeed launcher")
    add("--slurm", action="store_true", help="write a job array for Slurm instead of running anything")
    add("--nodes", type=int, default=1, metavar="N", help="with --slurm: machines of a run (default: 1)")
    add("--at-once", type=int, metavar="K", help="with --slurm: runs at a time (default: all)")
    add(
        "--gpu",
        metavar="NAME",
        help="estimate GPU-hours on this GPU: a100, h100, ... (default: this machine)",
    )
    add("--gpus", type=int, metavar="N", help="with --gpu: GPUs of a run (default: 8 for each of --nodes)")
    add("--other-commit", action="store_true", help="go on with a sweep begun at another commit or settings")
    add("--begin", metavar="RUN", help="for job scripts: note that a run begins; print its options")
    add("--end", nargs=2, metavar=("RUN", "STATUS"), help="for job scripts: note how a run ended")


def run(options: argparse.Namespace) -> int:
    """Does what the options say; returns the exit status, 1 when a run has failed.

    Raises: UserError.
    """
    from flava_ds.commands import sweep_jobs
    from flava_ds.scaling.sweep import FAILED, RUNNING, Sweep

    check_options(options)
    if options.begin is not None or options.end is not None:
        return sweep_jobs.note(Sweep.open(options.sweep), options)
    if options.status:
        return show(Sweep.open(options.sweep), options.parquet)
    sweep, spec = planned(options)
    if options.slurm and spec is not None and spec.asked is not None:
        raise UserError(
            f"--slurm: {options.sweep} asks for runs one by one, by what the earlier ones reached, and "
            "a job array is written beforehand; run it without --slurm, or over --hostfile"
        )
    configs = {name: config_of(sweep, own) for name, own in sweep.runs.items()}
    check_earlier(sweep, configs, options)
    names = waiting(sweep, options)
    check_start(sweep, {name: configs[name] for name in names}, options)
    sweep = with_facts(sweep, configs)
    known, all_configs, coming = with_asked(sweep, spec, configs, names, options)
    if coming and (options.slurm or options.hostfile is not None):  # before anything is written
        sweep_jobs.launcher("slurm.sbatch" if options.slurm else "deepspeed.sh")
    if coming and options.hostfile is not None:
        sweep_jobs.check_hosts(known, coming[0], options)
    for line in estimate(known, all_configs, coming, options):
        print(line)
    if options.dry_run:
        for name in names:
            print(f"  {name}  {sweep.runs[name].place()}")
        return 0
    asks = spec is not None and spec.asked is not None and len(sweep.runs) < spec.asked.runs
    if not names and not asks:
        return show(sweep, options.parquet)
    if not options.yes and input("Start? [y/N] ").strip().lower() not in ("y", "yes"):
        return 2
    sweep.save()
    if options.slurm:
        print(sweep_jobs.write_array(sweep, names, options))
        return 0
    status = sweep_jobs.run_all(sweep, spec, names, options)
    show(sweep := Sweep.open(sweep.folder), options.parquet)
    if status:
        print(f"stopped by signal {status - 128}; the same command goes on from here")
    states = {name: sweep.state(name)["state"] for name in sweep.runs}
    if left := [name for name in names if states[name] == RUNNING and not status]:
        print(f"left alone: {', '.join(left)}; the same command looks again")
    return status or int(bool(left) or FAILED in states.values())


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that cannot work."""
    for name, value in (
        ("ranks", options.ranks), ("most", options.most), ("nodes", options.nodes),
        ("at-once", options.at_once), ("gpus", options.gpus),
    ):  # fmt: skip
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: use at least 1")
    if options.slurm and options.hostfile is not None:
        raise UserError("--slurm and --hostfile are two ways to run a sweep; choose one")
    if options.ranks is not None and (options.slurm or options.hostfile is not None):
        raise UserError("--ranks is for runs on this machine; Slurm's settings or the hostfile say how many")
    if options.gpus is not None and options.gpu is None:
        raise UserError("--gpus is for --gpu; name one")
    if options.hostfile is not None and not options.hostfile.is_file():
        raise UserError(
            f"--hostfile {options.hostfile}: no such file; write 'node1 slots=8' for each machine"
        )
    whole = options.status or options.begin is not None or options.end is not None
    if whole and options.sweep.is_file():
        raise UserError(f"{options.sweep}: is a file; name the sweep's folder, which holds its runs")


def check_start(sweep: Sweep, configs: dict[str, Config], options: argparse.Namespace) -> None:
    """Raises UserError when runs cannot start as asked for, or nobody can be asked."""
    from flava_ds.commands.train import check_run
    from flava_ds.ranks import launch

    if options.gpu is not None:
        gpus = machines_of(options).gpus
        for name, config in configs.items():
            with names_run(sweep, sweep.runs[name]):
                launch.check_batches(config, gpus)
    for name, config in () if options.slurm else configs.items():  # Slurm's jobs look where they run
        with names_run(sweep, sweep.runs[name]):
            if options.hostfile is not None:
                launch.check_inputs(config)  # as the launcher does here, before each run
            else:
                check_run(options, config)
    if not (options.yes or options.dry_run or sys.stdin.isatty()):
        raise UserError("the sweep is not started, as nobody can be asked here; add --yes")


def machines_of(options: argparse.Namespace) -> Cluster:
    """Returns the machines that --gpu names. Raises: ConfigError for an unknown GPU."""
    from flava_ds.scaling.hardware import cluster

    return cluster(options.gpu, options.gpus or 8 * options.nodes, None, None)


def estimate(sweep: Sweep, configs: dict[str, Config], names: list[str], options: Any) -> list[str]:
    """Returns what the waiting runs will take. Raises: ConfigError for an unknown GPU."""
    from flava_ds.ranks import launch
    from flava_ds.scaling import sweep_cost

    chosen = {name: configs[name] for name in names}
    flops = sum(sweep.facts[name]["planned_flops"] for name in names)
    runs = number_of(len(names), "run")
    every = number_of(len(sweep.runs), "run")
    counts = [f"{sweep.folder}: {every}, {len(names)} of them now, compared by {sweep.metric}"]
    if not names:
        return counts
    if options.gpu is not None:
        machines = machines_of(options)
        hours = sweep_cost.on_gpus(chosen, sweep_cost.works_of(chosen), machines)
        how = f"on {machines.gpus} x {machines.gpu.title} for each run, a forecast"
        return [*counts, sweep_cost.sentence(len(names), flops, hours, "GPU-hours", how)]
    if options.slurm or options.hostfile is not None:
        return [
            *counts,
            f"{runs}: {flops:.3g} FLOPs; --gpu NAME forecasts the GPU-hours",
        ]
    if launch.count_gpus():
        return [*counts, f"{runs}: {flops:.3g} FLOPs; --gpu NAME forecasts the hours"]
    done = {name: own for name in sweep.runs if (own := sweep.state(name).get("results"))}
    seconds = sum(3600 * own.get("gpu_hours", 0.0) for own in done.values()) / (options.ranks or 1)
    rate = min(map(sweep_cost.cpu_rate, {own.training.precision for own in chosen.values()}))
    # planned like those to come: what a run logs follows the lengths of its own texts
    finished = {"flops": sum(sweep.facts[name]["planned_flops"] for name in done), "seconds": seconds}
    hours, how = sweep_cost.on_this_machine(flops, rate, finished)
    return [*counts, sweep_cost.sentence(len(names), flops, hours, "hours on this machine", how)]


def show(sweep: Sweep, parquet: bool) -> int:
    """Prints the states of a sweep and writes its tables and page."""
    from flava_ds.report.sweep_page import status_rows, write_sweep_page
    from flava_ds.scaling.sweep import write_tables
    from flava_ds.scaling.table import render

    if not sweep.runs:
        raise UserError(f"{sweep.folder}: has no run yet; go on with its SPEC")
    rows: Sequence[Sequence[str]] = status_rows(sweep)
    print(render(rows, indent=""))
    if lacking := sweep.without_metric():
        print(f"without {sweep.metric} in their logs: {', '.join(lacking)}")
    print(*write_tables(sweep, parquet), sep="\n")
    try:
        print(write_sweep_page(sweep))
    except ImportError as error:
        print(f"no sweep.html: {error.name} is missing; `pip install 'flava_ds[demo]'` and ask for --status")
    return 0
