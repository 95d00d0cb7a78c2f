"""Draws what the families reach along their training FLOPs, for docs/comparison.md, from committed results:

    python benchmarks/comparison_curves.py

Needs the extra `demo`, for matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scripts import parser_of

from flava_ds.campaigns.campaign import read_results
from flava_ds.campaigns.comparison import COLUMNS, ROWS
from flava_ds.campaigns.course import MEANS, QUARTERS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "comparison" / "small"
PICTURES = ROOT / "docs" / "images" / "curves"
SHOWN = ("vision/group", "vision/subgroup", "multimodal/caption_to_image_reciprocal_rank")
"""Numbers that are measured on the way."""
ACROSS = 5
"""Panels of losses beside each other."""
Results = Mapping[str, Sequence[Mapping[str, Any]]]


def main() -> None:
    """Draws both pictures, of all rows that have a result with its course."""
    parser_of(__doc__).parse_args()
    found = read_results(RESULTS)
    rows = {row: own for row in ROWS if (own := [one for one in found.get(row, ()) if "course" in one])}
    for name, figure in (("comparison", measured(rows)), ("comparison_losses", losses(rows))):
        file = PICTURES / f"{name}.svg"
        figure.savefig(file, metadata={"Date": None})
        print(file)


def measured(rows: Results) -> Figure:
    """Draws each number that is measured on the way: one line for each family that has it, the mean of its
    seeds.
    """
    figure = Figure(figsize=(3.4 * len(SHOWN), 2.9), layout="constrained")
    colours = {row: f"C{number}" for number, row in enumerate(rows)}
    for axes, metric in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        having = {row: own for row, own in rows.items() if metric in own[0]["metrics"]}
        for row, own in having.items():
            values = [
                [*(quarter[metric] for quarter in one["course"]["quarters"]), one["metrics"][metric]["value"]]
                for one in own
            ]
            means = [100 * float(np.mean(column)) for column in zip(*values, strict=True)]
            axes.plot(quarters_of(own), means, marker="o", markersize=3, color=colours[row], label=row)
        axes.set(
            title=f"{COLUMNS[metric]}, per cent", xlabel="training TFLOP", xlim=(0, None), ylim=(0, None)
        )
        axes.legend(fontsize=7, frameon=False)
    return figure


def losses(rows: Results) -> Figure:
    """Draws every family's losses, one panel each."""
    down = -(-len(rows) // ACROSS)
    figure = Figure(figsize=(2.5 * ACROSS, 2.1 * down), layout="constrained")
    panels = figure.subplots(down, ACROSS, squeeze=False).ravel()
    for axes, (row, own) in zip(panels, rows.items(), strict=False):
        work = quarters_of(own)[-1] * (np.arange(MEANS) + 0.5) / MEANS
        for name in own[0]["course"]["losses"]:
            curves = np.array([one["course"]["losses"][name] for one in own], dtype=float)
            axes.plot(work, curves.mean(0), linewidth=1.2, label=name)
        axes.set(xlabel="training TFLOP", ylabel="loss, nats", xlim=(0, None))
        axes.set_title(row, fontsize=9)
        axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for six names above the curves
        axes.legend(fontsize=6, frameon=False, ncols=2, handlelength=1, columnspacing=1)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    return figure


def quarters_of(own: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the training TFLOP after each quarter, the mean of a row's seeds."""
    work = sum(one["training_flops"] for one in own) / len(own) / 1e12
    return [work * number / QUARTERS for number in range(1, QUARTERS + 1)]


if __name__ == "__main__":
    main()
