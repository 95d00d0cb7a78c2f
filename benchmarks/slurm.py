"""Trains by launchers/slurm.sbatch on a Slurm cluster of two hosts, interrupted in every way that Slurm has,
and records what became of the runs for docs/multi_node.md.

    python benchmarks/slurm.py && make docs

The hosts are network namespaces of this machine (tests/launchers/pretend_slurm.py). This needs root and
Debian's iproute2 and slurm-wlm, and takes some ten minutes. Writes benchmarks/results/slurm.json.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts import parser_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "launchers"))
RESULTS = ROOT / "benchmarks" / "results" / "slurm.json"
STEPS = 120
STEPS_OF_LIMITED = 900
"""Longer than the 40 seconds until Slurm's signal."""
WORDS = ("stopped", "stopping", "continuing", "goes on", "srun:", "slurmstepd")
"""In lines that the page shows."""


def told(said: str) -> list[str]:
    """Returns what a job has written about its first end, its beginning again, and its last end."""
    lines = [line for line in said.splitlines() if not line.startswith(("step ", "E1", "W1"))]
    first = next((n for n, line in enumerate(lines) if "goes on after" in line), len(lines)) + 1
    shown = [
        line
        for line, following in itertools.pairwise(lines[:first] + [""])
        if any(word in line for word in WORDS) or ("saved" in line and "stopped by" in following)
    ]
    return [*shown, "...", *(line for line in lines if "finished" in line)]


def record(run: Any, how: str, expected: list[dict[str, float]]) -> dict[str, Any]:
    """Returns what the page shows of a run."""
    return {
        "how": how,
        "command": shlex.join(run.command),
        "steps": run.steps,
        "continued_from": max(run.continued_from(), default=None),
        "restarts": int(run.record()["Restarts"]),
        "equal": run.curve() == expected,
        "log": told(run.said()),
    }


def main() -> int:
    """Runs everything. Returns 1 if a curve differs or a run of the array has not finished."""
    parser_of(__doc__).parse_args()
    from pretend_hosts import missing
    from pretend_slurm import PROGRAMS, slurm
    from slurm_runs import INTERRUPTIONS, array_of_runs, at_time_limit, expected, interrupted, undisturbed

    if reason := missing(*PROGRAMS, ssh=False):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as folder:
        os.chdir(work)
        short, long = (expected(Path(work), steps) for steps in (STEPS, STEPS_OF_LIMITED))
        with slurm(Path(folder)) as cluster:
            version = cluster.run("sinfo", "--version").split()[-1]
            rows.append(record(undisturbed(cluster, STEPS), "nothing", short))
            rows.append(record(at_time_limit(cluster, STEPS_OF_LIMITED), "the time limit", long))
            for how in INTERRUPTIONS:
                rows.append(record(interrupted(cluster, STEPS, how), how, short))
            states = array_of_runs(cluster)
        os.chdir(ROOT)
    packages = {name: metadata.version(name) for name in ("torch", "deepspeed")}
    found = {"slurm": version, **packages, "rows": rows, "array": sorted(states.values())}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['how']:32} continued from {row['continued_from']}, equal: {row['equal']}")
    return int(not all(row["equal"] for row in rows) or set(states.values()) != {"finished"})


if __name__ == "__main__":
    sys.exit(main())
