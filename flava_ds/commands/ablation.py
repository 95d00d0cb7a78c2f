"""`flava-ds ablation`: runs the paper's ablation at the demo's size, and judges its orderings."""

from __future__ import annotations

import argparse
from pathlib import Path

from flava_ds.commands.local_path import local_path

OUT = Path("benchmarks/results/ablation")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    command.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="rows of the table (default: all, and three that the paper lacks)",
    )
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    command.add_argument("--work", default="small", help="small: 700 pair steps a run (default), or tiny: 14")
    command.add_argument(
        "--out",
        type=local_path,
        default=OUT,
        metavar="FOLDER",
        help=f"where results are, and are looked for: a run that has one is finished (default: {OUT})",
    )
    command.add_argument(
        "--most", type=int, metavar="N", help="run at most N of those that are left, and stop"
    )


def run(options: argparse.Namespace) -> int:
    """Runs what is left, then prints the verdicts so far.

    Raises: UserError.
    """
    from flava_ds.ablation import campaign
    from flava_ds.ablation.orderings import judge, spelled
    from flava_ds.demo.dataset import unpack
    from flava_ds.errors import UserError
    from flava_ds.ranks.launch import check_ranks
    from flava_ds.recipes.ablation import ROWS
    from flava_ds.recipes.demo import DATA

    if options.most is not None and options.most < 0:
        raise UserError(f"--most {options.most}: use at least 0")
    check_ranks(campaign.RANKS, gpus=0)
    rows = options.rows or list(ROWS)
    todo = list(campaign.unfinished(campaign.plan(rows, options.seeds, options.work, options.out)))
    unpack(DATA)
    for number, each in enumerate(todo[: options.most]):
        print(f"{len(todo) - number} runs are left", flush=True)
        campaign.perform(each)
    for judged in judge(campaign.read_results(options.out / options.work)):
        found = judged.estimate
        said = "" if found is None else f": {found.value:+.2f} +- {found.standard_error:.2f} points"
        print(f"{spelled(judged.ordering)}{said}: {judged.verdict} ({judged.seeds} seeds)")
    return 0
