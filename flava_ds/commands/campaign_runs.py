"""What `flava-ds ablation` and `flava-ds compare` have in common: options, and running what is left."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.commands.local_path import local_path
from flava_ds.errors import UserError, number_of
from flava_ds.storage.atomic import check_writable, hold

if TYPE_CHECKING:
    from flava_ds.campaigns.campaign import Run, Table


def add_arguments(command: argparse.ArgumentParser, *, rows: tuple[str, str], work: str, out: Path) -> None:
    """Adds the arguments; `rows` are the option that names rows and its help, `work` the help of --work."""
    option, help = rows
    command.add_argument(option, dest="rows", nargs="+", metavar="ROW", help=help)
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    seeds.add_argument("--seed", type=int, nargs="+", metavar="K", help="these seeds alone")
    command.add_argument("--work", default="small", help=work)
    command.add_argument(
        "--out",
        type=local_path,
        default=out,
        metavar="FOLDER",
        help=f"where results are, and are looked for: a run that has one is finished (default: {out})",
    )
    command.add_argument(
        "--most", type=int, metavar="N", help="run at most N of those that are left, and stop"
    )


def run_left(options: argparse.Namespace, table: Table) -> tuple[Path, int]:
    """Runs what is left of a table; returns the folder of its results and the command's exit status: 1 while
    another command is at a run that was left alone.

    Raises: UserError; SystemExit with 128 + signal when it is asked to stop.
    """
    from flava_ds.campaigns import campaign
    from flava_ds.campaigns.performing import perform
    from flava_ds.ranks.launch import check_ranks
    from flava_ds.ranks.stop_signals import like_ctrl_c

    if options.most is not None and options.most < 0:
        raise UserError(f"--most {options.most}: use at least 0")
    check_ranks(campaign.RANKS, gpus=0)
    rows = options.rows or list(table.rows)
    planned = campaign.plan(table, rows, seeds_of(options), options.work, options.out)
    todo = list(campaign.unfinished(planned))
    campaign.check_others(table, planned, options.work, options.out)
    if todo[: options.most]:
        check_writable(options.out / options.work, "--out")
    performed, left_alone = 0, []
    for number, each in enumerate(todo):
        if performed == options.most:
            break
        print(f"{number_of(len(todo) - number, 'run')} left", flush=True)
        with alone(each) as why_not:
            if why_not:
                print(f"{each.row}, seed {each.seed}: left alone, {why_not}", flush=True)
                left_alone.append(each.file)
                continue
            performed += 1
            with like_ctrl_c():
                try:
                    perform(each)
                except KeyboardInterrupt:
                    print("\nstopped; the same command goes on from here", flush=True)
                    raise
    return options.out / options.work, int(not all(file.is_file() for file in left_alone))


def seeds_of(options: argparse.Namespace) -> list[int]:
    """Returns the seeds that are asked for, in order. Raises: UserError."""
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: use at least 1")
    if wrong := [seed for seed in options.seed or () if seed < 0]:
        raise UserError(f"--seed {wrong[0]}: use at least 0")
    return sorted({*options.seed}) if options.seed else list(range(options.seeds))


@contextmanager
def alone(run: Run) -> Iterator[str]:
    """Keeps other commands of this machine away from a run until the block ends; yields why it is not to be
    run, empty if it is: what another one has begun is its own until its end, measuring included.
    """
    lock = run.folder.with_name(f".{run.folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = hold(lock)
    except BlockingIOError:
        yield "another command is at it"
        return
    try:
        yield f"it has finished meanwhile, {run.file}" if run.file.is_file() else ""
    finally:
        with suppress(OSError):
            lock.unlink()
        held.close()
