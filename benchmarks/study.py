"""Keeps the results of the small study of scaling, fits its laws and draws them, for docs/scaling.md:

    flava-ds sweep benchmarks/study.yaml --ranks 2
    python benchmarks/study.py runs/study

Needs the extras `demo` and `eval`, for matplotlib and scipy.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scripts import parser_of

from flava_ds.cli import main as flava_ds

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "curves" / "study.svg"
METRIC = "evaluation/study_gallery/contrastive_nats"
PAIRS = {"quarter": 1_500, "half": 3_000, "all": 6_000}
SAMPLES = (24_000, 71_000, 142_000)
RATES = ("rates_narrow", "rates_wide")
"""Parts whose runs differ in the learning rate alone; the laws leave them out."""


def main() -> int:
    """Copies the table of runs, writes the laws beside it, and draws both."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=Path)
    sweep = parser.parse_args().sweep
    status = flava_ds(["sweep", str(sweep), "--status"])
    left_out = [word for part in RATES for word in ("--leave-out", part)]
    status = status or flava_ds(["laws", str(sweep), *left_out, "--json", str(RESULTS / "study_laws.json")])
    if status:
        return status
    shutil.copyfile(sweep / "results.csv", RESULTS / "study.csv")
    with (RESULTS / "study.csv").open(encoding="utf-8", newline="") as file:
        draw([run for run in csv.DictReader(file) if run["state"] == "finished"])
    return 0


def draw(runs: list[dict[str, str]]) -> None:
    """Draws the loss on the gallery by samples seen and by different pairs, a line for each width."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    by_samples, by_pairs = figure.subplots(1, 2, sharey=True)
    for number, width in enumerate(sorted({int(run["axis/width"]) for run in runs})):
        own = [run for run in runs if run["axis/width"] == str(width) and not run["axis/seed"]]
        own = [run for run in own if not run["axis/batch"] and not run["axis/optimizer.lr"]]
        look = {"marker": "o", "markersize": 3, "linewidth": 1.2, "color": f"C{number}"}
        longer = sorted(
            (float(run["samples"]), float(run[METRIC])) for run in own if run["axis/pairs"] == "all"
        )
        by_samples.plot(*zip(*longer, strict=True), label=f"{width} wide", **look)
        middle = {run["axis/pairs"]: float(run[METRIC]) for run in own if run["axis/steps"] == "middle"}
        by_pairs.plot(list(PAIRS.values()), [middle[name] for name in PAIRS], **look)
    seeds = [run for run in runs if run["axis/seed"]]
    at = [float(run["samples"]) for run in seeds], [float(run[METRIC]) for run in seeds]
    by_samples.plot(*at, "x", markersize=4, color="0.4", label="other seeds")
    for axes, ticks in ((by_samples, SAMPLES), (by_pairs, PAIRS.values())):
        axes.set_xscale("log")
        axes.set_xticks(list(ticks), labels=[f"{tick:,}" for tick in ticks], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
    by_samples.set(xlabel="samples seen, all pairs", ylabel="loss on 512 held-out pairs, nats")
    by_pairs.set(xlabel="different pairs, 600 steps")
    by_samples.legend(fontsize=7)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
