"""Compares the cost of a step and of a loaded sample between two commits, round by round on this machine.

    python benchmarks/same_speed.py d55cb17 HEAD --shards FOLDER [--rounds 7] [--part loader]

The metric is CPU time, user and system, of all processes, which other programs on the machine affect less
than wall-clock time. A step's cost is the difference between a long and a short run, divided by the steps in
between. A sample's cost is the report of the commit's own `loader_rows.py`, which excludes start-up. FOLDER
gets photographs unless it has them (photo_shards.py). Both commits run in turn in every round, and ratios are
computed within a round. Writes benchmarks/results/same_speed.json; a part that is not measured stays in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from photo_shards import photo_shards
from same_curves import ROOT, Run, check_out, train

RESULTS = ROOT / "benchmarks" / "results" / "same_speed.json"
STEPS = {"flava_debug": (20, 220), "demo": (5, 45)}
"""Steps of the short and the long run, by recipe."""
LOADER_ROWS = ("flava_ds", "flava_ds_two_views")


def main() -> int:
    """Measures all rows in every round and writes the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--part", choices=MEASURES, action="append", help="default: all")
    options = parser.parse_args()
    photo_shards(options.shards)
    parts = options.part or list(MEASURES)
    costs: dict[str, dict[str, dict[str, list[float]]]] = {part: {} for part in parts}
    with tempfile.TemporaryDirectory() as scratch:
        sides = ("old", "new")
        commits = {side: check_out(getattr(options, side), Path(scratch) / side) for side in sides}
        try:
            for number in range(options.rounds):
                for side in sides if number % 2 else reversed(sides):
                    for part in parts:
                        for name, cost in MEASURES[part](commits[side][1], options).items():
                            costs[part].setdefault(name, {}).setdefault(side, []).append(cost)
                for part in parts:
                    print(f"round {number + 1}, {part}: {json.dumps(ratios(costs[part]))}", flush=True)
        finally:
            for _, folder in commits.values():
                subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=False)
    about = {side: commits[side][0] for side in sides} | {
        "machine": platform.processor() or platform.machine(),
        "rounds": options.rounds,
    }
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    found |= {part: about | {"ratios": ratios(own), "cpu_seconds": own} for part, own in costs.items()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def step_cost(recipe: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Returns the CPU seconds of a recipe's step."""
    few, many = STEPS[recipe]
    run = Run(recipe, 1, 1, few)
    short, long = (cpu_seconds(replace(run, steps=steps), folder) for steps in (few, many))
    return {f"step of {recipe}": (long - short) / (many - few)}


def sample_costs(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Returns the CPU seconds of a sample of each loader."""
    found = {}
    for row in LOADER_ROWS:
        script = folder / "benchmarks" / "loader_rows.py"
        words = [sys.executable, str(script), row, str(options.shards), "--samples", str(options.samples)]
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'kernels'}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        line = json.loads(done.stdout.splitlines()[-1])
        found[f"sample of {row}"] = line["cpu_seconds"] / line["samples"]
    return found


MEASURES = {**{recipe: partial(step_cost, recipe) for recipe in STEPS}, "loader": sample_costs}
"""What is measured, by part of the results."""


def cpu_seconds(run: Run, folder: Path) -> float:
    """Trains. Returns the CPU time of all its processes."""
    before = os.times()
    train(run, folder)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def ratios(costs: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Returns new / old of each row: median over rounds, minimum and maximum."""
    found = {}
    for name, sides in costs.items():
        values = [new / old for old, new in zip(sides["old"], sides["new"], strict=True)]
        found[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {
        name: {kind: round(value, 4) for kind, value in numbers.items()} for name, numbers in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
