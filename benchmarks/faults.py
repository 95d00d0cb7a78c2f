"""Injects every fault of docs/faults.md into the real trainer on two ranks; records what a user sees.

    python benchmarks/faults.py && make docs

The tests inject the same ones (tests/training/fault_cases.py). Takes some minutes; writes
benchmarks/results/faults.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"


def main() -> int:
    """Runs everything. Returns 1 if a curve differs."""
    from fault_cases import Gauntlet, every_fault

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [dataclasses.asdict(outcome) for outcome in every_fault(Gauntlet(folder))]
    for row in rows:
        row["said"] = (
            row["said"]
            .replace(f"{name}/", "")
            .replace(f"host {socket.gethostname()}", "host h0")
            .replace(f"on {socket.gethostname()} ", "on h0 ")
        )
        row["seconds"] = None if row["seconds"] is None else round(row["seconds"], 1)
    found = {
        "ranks": 2,
        "cores": len(os.sched_getaffinity(0)),
        "torch": metadata.version("torch"),
        "deepspeed": metadata.version("deepspeed"),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row["equal"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
