"""Injects faults into the real trainer on two ranks; records what a user sees.

    python benchmarks/faults.py && make docs                         # every fault of docs/faults.md, once
    python benchmarks/faults.py --trials 200 --seed 1 && make docs   # a campaign: faults at random moments

The tests inject the same ones (tests/training/fault_cases.py). Takes some minutes; writes
benchmarks/results/faults.json. A campaign (tests/training/fault_trials.py) takes a quarter of a minute a
trial, and keeps every trial in benchmarks/results/faults_campaign.json as soon as it is done: the same
command goes on where it was stopped. Its hosts need root and iproute2; without, their faults are left out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts import parser_of

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("", "training", "launchers")]
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    """Runs everything. Returns 1 if a curve differs."""
    parser = parser_of(__doc__)
    parser.add_argument("--trials", type=int, default=0, help="trials of a campaign, those kept included")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (default: 0)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "faults_campaign.json", help="where a campaign is kept"
    )
    parser.add_argument(
        "--again", type=int, nargs="+", default=[], metavar="N", help="repeat these trials, after a mend"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.trials:
            return campaign(Path(folder), options.trials, options.seed, options.results, options.again)
        return every_fault_once(Path(folder))


def every_fault_once(folder: Path) -> int:
    """Injects each fault of the table."""
    from fault_cases import Gauntlet, every_fault

    rows = [dataclasses.asdict(outcome) for outcome in every_fault(Gauntlet(folder))]
    for row in rows:
        row["said"] = without_places(row["said"], folder)
        row["seconds"] = None if row["seconds"] is None else round(row["seconds"], 1)
    write(RESULTS / "faults.json", machine() | {"rows": rows})
    return int(any(row["equal"] is False for row in rows))


def campaign(folder: Path, trials: int, seed: int, results: Path, again: list[int]) -> int:
    """Runs the trials that `results` does not have yet, and those in `again`; keeps each when it is done.

    Raises: SystemExit when those that are kept have another seed, or there are others of this seed by now.
    """
    import fault_trials_disk  # noqa: F401  (adds its faults)
    import fault_trials_hosts  # noqa: F401
    from fault_cases import Gauntlet
    from fault_trials import FAULTS, STEPS, Trial

    found: dict[str, Any] = machine() | {"seed": seed, "steps": STEPS, "faults": sorted(FAULTS), "rows": []}
    if results.is_file():
        kept = json.loads(results.read_text(encoding="utf-8"))
        if (kept["seed"], kept["faults"]) != (seed, found["faults"]):
            raise SystemExit(f"error: {results} is of another seed or other faults; move it away")
        found["rows"] = kept["rows"]
    gauntlet = Gauntlet(folder, STEPS)
    for number in [*again, *range(len(found["rows"]), trials)]:
        row = Trial(gauntlet, seed, number).row()
        row["said"] = without_places(row["said"], folder)
        row["problems"] = [without_places(problem, folder) for problem in row["problems"]]
        found["rows"][number : number + 1] = [row]
        write(results, found)
        verdict = "equal" if row["equal"] else "NOT EQUAL"
        print(f"{number + 1}/{trials} {row['fault']}: {verdict} {row['problems'] or ''}", flush=True)
    return int(any(row["problems"] or not row["equal"] for row in found["rows"]))


def machine() -> dict[str, Any]:
    """Returns what all runs had in common."""
    versions = {name: metadata.version(name) for name in ("torch", "deepspeed")}
    return {"ranks": 2, "cores": len(os.sched_getaffinity(0)), **versions}


def without_places(said: str, folder: Path) -> str:
    """Takes the names of this machine, its folders and its processes out of a message."""
    host = socket.gethostname()
    said = said.replace(f"host {host}", "host h0").replace(f"on {host} ", "on h0 ")
    return re.sub(r"pid \d+", "pid N", said.replace(f"{folder}/", ""))


def write(path: Path, found: dict[str, Any]) -> None:
    """Writes results, whole or not at all."""
    from flava_ds.storage.atomic import write_json

    write_json(path, found, indent=1)


if __name__ == "__main__":
    sys.exit(main())
