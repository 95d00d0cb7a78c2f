"""Stores a finished demo's numbers for the docs: python benchmarks/demo.py runs/demo-ten-minutes

Writes benchmarks/results/demo_<work>.json: the run's demo.json plus the metrics of its evaluation.json. Then
`make docs` fills the pages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts import parser_of

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Reads a run's folder and writes its results."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished demo of a fixed work")
    run = parser.parse_args().run
    if not (run / "demo.json").is_file():
        print(f"error: {run}: no demo.json there, so no demo has finished in it", file=sys.stderr)
        return 2
    summary = json.loads((run / "demo.json").read_text(encoding="utf-8"))
    if summary["work"] is None:
        print(
            f"error: {run}: was cut to {summary['minutes']:g} minutes; its numbers depend on the machine",
            file=sys.stderr,
        )
        return 2
    summary["metrics"] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    out = RESULTS / f"demo_{summary['work'].replace('-', '_')}.json"
    out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
