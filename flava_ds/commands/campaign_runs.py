"""What `flava-ds ablation` and `flava-ds compare` have in common: options, and running what is left."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.commands.local_path import local_path
from flava_ds.errors import UserError, number_of
from flava_ds.storage.atomic import check_writable

if TYPE_CHECKING:
    from flava_ds.campaigns.campaign import Table


def add_arguments(command: argparse.ArgumentParser, *, rows: tuple[str, str], work: str, out: Path) -> None:
    """Adds the arguments; `rows` are the option that names rows and its help, `work` the help of --work."""
    option, help = rows
    command.add_argument(option, dest="rows", nargs="+", metavar="ROW", help=help)
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
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


def run_left(options: argparse.Namespace, table: Table) -> Path:
    """Runs what is left of a table; returns the folder of its results. Raises: UserError."""
    from flava_ds.campaigns import campaign
    from flava_ds.campaigns.performing import perform
    from flava_ds.ranks.launch import check_ranks

    if options.most is not None and options.most < 0:
        raise UserError(f"--most {options.most}: use at least 0")
    check_ranks(campaign.RANKS, gpus=0)
    rows = options.rows or list(table.rows)
    planned = campaign.plan(table, rows, options.seeds, options.work, options.out)
    todo = list(campaign.unfinished(planned))
    campaign.check_others(table, planned, options.work, options.out)
    if todo[: options.most]:
        check_writable(options.out / options.work, "--out")
    for number, each in enumerate(todo[: options.most]):
        print(f"{number_of(len(todo) - number, 'run')} left", flush=True)
        try:
            perform(each)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here", flush=True)
            raise
    return options.out / options.work
