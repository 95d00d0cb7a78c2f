"""`flava-ds ablation`: runs the paper's ablation at the demo's size, and judges its orderings."""

from __future__ import annotations

import argparse
from pathlib import Path

from flava_ds.commands import campaign_runs

OUT = Path("benchmarks/results/ablation")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    campaign_runs.add_arguments(
        command,
        rows=("--rows", "rows of the table (default: all, and six that the paper lacks)"),
        work="small: 700 pair steps a run (default), large: 1,400 and more measurements, on data that is "
        "fetched first, or tiny: 14; measuring takes minutes a run with each",
        out=OUT,
    )


def run(options: argparse.Namespace) -> int:
    """Runs what is left, then prints the verdicts so far; returns 1 while another command is at a run.

    Raises: UserError.
    """
    from flava_ds.campaigns.ablation import TABLE, judge, spelled
    from flava_ds.campaigns.campaign import read_results

    folder, status = campaign_runs.run_left(options, TABLE)
    for judged in judge(read_results(folder)):
        found = judged.estimate
        said = "" if found is None else f": {found.value:+.2f} +- {found.standard_error:.2f} points"
        print(f"{spelled(judged.ordering)}{said}: {judged.verdict} ({judged.seeds} seeds)")
    return status
