"""Draws the ablation's rows and orderings for docs/ablation.md, from committed results:

    python benchmarks/ablation_plot.py

Needs the extra `demo`, for matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts import parser_of

from flava_ds.campaigns.ablation import DOMAINS, TABLE, domain_parts, judge, spelled
from flava_ds.campaigns.campaign import read_results
from flava_ds.evaluation.paired import bootstrap

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ablation" / "small"
PICTURE = ROOT / "docs" / "images" / "curves" / "ablation.svg"
COLOURS = {"holds": "C2", "reversed": "C3", "unresolved": "0.45"}
REACH = 10.0
"""Points that the axis of differences shows; the paper's beyond it are written at its end."""


def main() -> None:
    """Draws the picture."""
    parser_of(__doc__).parse_args()
    found = read_results(RESULTS)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    draw_rows(left, found)
    draw_orderings(right, found)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)


def draw_rows(axes: Axes, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draws each row's domains with standard errors over seeds and items."""
    rows = [row for row in TABLE.rows if row in found]
    for number, domain in enumerate(DOMAINS):
        colour = f"C{number}"
        for place, row in enumerate(rows):
            parts = domain_parts(found[row], domain)
            if len(found[row]) > 1 and parts:
                own = bootstrap(parts)
                axes.errorbar(own.value, place, xerr=own.standard_error, fmt="o", ms=4, color=colour)
            elif parts:
                value = sum(weight * part.values().mean() for weight, part in parts)
                axes.plot(value, place, "o", ms=4, color=colour)
        axes.plot([], [], "o", ms=4, color=colour, label=domain)
    _name(axes, rows)
    axes.set(xlabel="points, mean of a domain", title="what the rows reach")
    axes.set_xlim(right=55)
    axes.legend(fontsize=8, loc="lower right")


def draw_orderings(axes: Axes, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draws each ordering's difference in its 95 % interval, and the paper's."""
    judged = [each for each in judge(found) if each.estimate is not None]
    for place, each in enumerate(judged):
        low, high = each.estimate.interval
        value, colour = each.estimate.value, COLOURS.get(each.verdict, "0.45")
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", ms=4, color=colour)
        paper = each.ordering.paper_gap
        axes.plot(min(paper, REACH), place, "|", ms=10, color="black", clip_on=False)
        if paper > REACH:
            axes.text(REACH, place, f"{paper:.0f}", fontsize=8, ha="right", va="bottom")
    for verdict, colour in COLOURS.items():
        axes.plot([], [], "o", ms=4, color=colour, label=verdict)
    axes.plot([], [], "|", ms=10, color="black", label="the paper's")
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    _name(axes, [spelled(each.ordering) for each in judged])
    axes.set(xlabel="difference in points, 95 % interval", title="orderings", xlim=(-REACH, REACH))
    axes.legend(fontsize=8, loc="center left")


def _name(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()


if __name__ == "__main__":
    main()
