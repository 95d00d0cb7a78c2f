"""docs/scaling.md: the small study, from `benchmarks/study.py`."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results

METRIC = "evaluation/study_gallery/contrastive_nats"
COLUMNS = (("short", "all"), ("middle", "quarter"), ("middle", "half"), ("middle", "all"), ("long", "all"))
"""Steps, and different pairs."""
Runs = list[dict[str, str]]
Plain = dict[tuple[str, str, str], dict[str, str]]
"""Runs of the first seed, batch and rate, by width, steps and pairs."""


def runs_in(root: Path) -> Runs:
    """Reads the runs that finished. Raises: FileNotFoundError without any."""
    file = root / "benchmarks" / "results" / "study.csv"
    rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    return [row for row in rows if row["state"] == "finished"]


def plain_of(runs: Runs) -> Plain:
    """Returns the runs that no other seed, batch or rate sets apart."""
    return {
        (run["axis/width"], run["axis/steps"], run["axis/pairs"]): run
        for run in runs
        if not (run["axis/seed"] or run["axis/batch"] or run["axis/optimizer.lr"])
    }


def loss(run: dict[str, str]) -> float:
    """Returns a run's loss on the gallery."""
    return float(run[METRIC])


def listed(losses: Iterable[float]) -> str:
    """Writes losses in a row."""
    return ", ".join(f"{each:.2f}" for each in losses)


def grid(root: Path) -> str:
    """Lists the loss of every width by steps and different pairs."""
    plain, lines = plain_of(runs_in(root)), []
    for width in sorted({int(width) for width, _, _ in plain}):
        own = [plain[str(width), steps, pairs] for steps, pairs in COLUMNS]
        cells = [f"*{loss(run):.2f}*" if run["held_out"] == "True" else f"{loss(run):.2f}" for run in own]
        lines.append([width, f"{int(own[0]['parameters']) / 1e6:.1f} M", *cells])
    header = ["width", "parameters", *(f"{steps}, {pairs}" for steps, pairs in COLUMNS)]
    return markdown_table(header, lines)


def besides(root: Path) -> str:
    """Says what other seeds, batches and learning rates change."""
    runs = runs_in(root)
    plain = plain_of(runs)
    lines, spreads = [], []
    for width in ("64", "128"):
        own = [loss(run) for run in runs if run["axis/seed"] and run["axis/width"] == width]
        own.append(loss(plain[width, "middle", "all"]))
        spreads.append(statistics.variance(own))
        lines.append(f"- **Seeds**, {width} wide, middle, all pairs: {listed(sorted(own))}.")
    deviation = math.sqrt(statistics.fmean(spreads))
    lines.append(f"- **Standard deviation** of one seed, from both: {deviation:.2f}.")
    batches = {int(run["axis/batch"]): loss(run) for run in runs if run["axis/batch"]}
    batches[128] = loss(plain["128", "middle", "all"])
    sizes = sorted(batches)
    lines.append(
        f"- **Batches** of {', '.join(map(str, sizes))} pairs, 128 wide, as many samples in all: "
        f"{listed(batches[size] for size in sizes)}."
    )
    for width in ("64", "192"):
        own = [run for run in runs if run["axis/width"] == width and run["axis/optimizer.lr"]]
        half, double = sorted(own, key=lambda run: float(run["axis/optimizer.lr"]))
        rates = listed(map(loss, (half, plain[width, "short", "all"], double)))
        lines.append(f"- **Half, given and double learning rate**, {width} wide, short: {rates}.")
    return "\n".join(lines)


def laws(root: Path) -> str:
    """Lists every law with its exponents and what it says of the held-out run."""
    found = read_results(root, "study_laws")
    lines = [[law["form"], *_numbers(law)] for law in found["laws"]]
    header = ["law", "alpha", "beta", "floor E", "held out: predicted", "measured", "error"]
    return (
        f"{markdown_table(header, lines)}\n\nFitted to {len(found['fitted_to'])} runs; ranges hold 95 % of "
        f"the fits to resampled runs. Guessing among 512 pairs has a loss of ln 512 = {math.log(512):.2f}."
    )


def _numbers(law: dict[str, Any]) -> list[str]:
    cells = []
    for name in ("alpha", "beta"):
        low, high = law["intervals"][name]
        cells.append(f"{law['numbers'][name]:.2f} ({low:.2f} to {high:.2f})")
    floor = f"{law['numbers']['E']:.2f}" if "E" in law["numbers"] else "none"
    known = law["floor_identified"] or floor == "none"
    cells.append(floor if known else f"{floor}, not identified")
    (own,) = law["held_out"]
    cells.append(f"{own['predicted']:.2f} ({own['low']:.2f} to {own['high']:.2f})")
    return [*cells, f"{own['measured']:.2f}", f"{own['predicted'] / own['measured'] - 1:+.1%}"]


BLOCKS = {"study_grid": grid, "study_besides": besides, "study_laws": laws}
