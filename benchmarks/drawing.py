"""How well a run draws from captions, and writes them, before and after further training:

    flava-ds train demo_generate --ranks 1 --initial-weights runs/demo-hour
    flava-ds evaluate runs/demo_generate
    python benchmarks/drawing.py runs/demo-hour runs/demo_generate && make docs

Reads both runs' evaluation.json and writes benchmarks/results/drawing.json, where rows of runs with other
names stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "drawing.json"


def main() -> int:
    """Keeps what concerns drawing and writing of each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="before, and after")
    rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else []
    for run in parser.parse_args().runs:
        if not (run / "evaluation.json").is_file():
            print(f"error: {run}: no evaluation.json there; run `flava-ds evaluate {run}`", file=sys.stderr)
            return 2
        found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        kept = ("drawing/", "writing/")
        metrics = {name: value for name, value in found["metrics"].items() if name.startswith(kept)}
        rows = [row for row in rows if row["run"] != run.name]
        rows.append({"run": run.name, "step": found["step"], "metrics": metrics})
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
