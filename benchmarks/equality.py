"""Compares every way to run a step with plain torch in one process, for docs/equality.md.

    python benchmarks/equality.py && make docs

Runs, reference and comparison are those of tests/training/equality_scenarios.py. Rows are written to
benchmarks/results/equality.json as each number of ranks finishes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from scripts import parser_of

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]
RESULTS = ROOT / "benchmarks" / "results" / "equality.json"


def planned() -> dict[int, list]:
    """Returns the scenarios by number of ranks."""
    from equality_scenarios import Scenario

    stages = [f"zero{stage}" for stage in range(4)]
    offloaded = [f"zero{stage}_offload" for stage in range(1, 4)]
    return {
        1: [
            Scenario("zero0"),
            Scenario("zero1", 4, checkpointing=True),
            Scenario("zero3", idle="zeros"),
            Scenario("zero1", arithmetic="fp32"),
        ],
        2: [
            *(Scenario(stage) for stage in stages + offloaded),
            *(Scenario(stage, 3, checkpointing=True) for stage in ("zero1", "zero3")),
            *(Scenario(stage, idle="zeros") for stage in ("zero0", "zero2", "zero3_offload")),
            Scenario("zero1", arithmetic="fp32"),
        ],
        3: [Scenario("zero1"), Scenario("zero3", 4, checkpointing=True)],
        4: [
            Scenario("zero0"),
            Scenario("zero2", 3, checkpointing=True),
            Scenario("zero3"),
            Scenario("zero1_offload", 3, idle="zeros"),
        ],
    }


def main() -> int:
    """Runs everything and writes the rows."""
    parser_of(__doc__).parse_args()
    import equality_batches as batches
    from equality_scenarios import OBSERVED, compare_all, write_references
    from rank_processes import run_ranks

    os.environ["DS_ACCELERATOR"] = "cpu"
    plan = planned()
    found = {
        "steps": batches.STEPS,
        "batch": batches.SIZE,
        "observed": len(OBSERVED),
        "conditions": batches.CONDITIONS,
    }
    found |= {
        "machine": platform.machine(),
        "torch": metadata.version("torch"),
        "deepspeed": metadata.version("deepspeed"),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        expected = write_references(sum(plan.values(), []), Path(folder))
        for ranks, scenarios in plan.items():
            of_ranks = zip(*run_ranks(compare_all, ranks, scenarios, expected, Path(folder)), strict=True)
            for scenario, differences in zip(scenarios, of_ranks, strict=True):
                worst = {
                    name: max(getattr(rank, name) for rank in differences)
                    for name in ("losses", "norms", "gradients", "parameters")
                }
                found["rows"].append({"ranks": ranks, **dataclasses.asdict(scenario), **worst})
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
