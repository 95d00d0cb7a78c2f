"""`flava-ds compare`: trains every family's demo recipe for equal FLOPs and evaluates all alike."""

from __future__ import annotations

import argparse
from pathlib import Path

from flava_ds.commands import campaign_runs

OUT = Path("benchmarks/results/comparison")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    campaign_runs.add_arguments(
        command,
        rows=("--recipes", "recipes of the table (default: all)"),
        work="small: twice the demo's training FLOPs a run (default), or tiny: a fiftieth of that; "
        "measuring takes minutes a run with either",
        out=OUT,
    )


def run(options: argparse.Namespace) -> int:
    """Runs what is left, then prints the table so far; returns 1 while another command is at a run.

    Raises: UserError.
    """
    from flava_ds.campaigns.campaign import read_results
    from flava_ds.campaigns.comparison import TABLE, table_rows
    from flava_ds.scaling.table import render

    folder, status = campaign_runs.run_left(options, TABLE)
    print(render(table_rows(read_results(folder))))
    return status
