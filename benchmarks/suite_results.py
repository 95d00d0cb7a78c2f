"""What `flava-ds evaluate --suite all` finds, for docs/evaluation.md: on the sets that packages contain, of a
trained and an untrained model; and on miniatures of all data sets of the paper's 35 tasks.

    python benchmarks/suite_results.py real TRAINED UNTRAINED --data data
    python benchmarks/suite_results.py miniatures

The sets are those that lie in `data` (`flava-ds prepare fetch`), at most 1,000 samples of each split; the
miniatures are those of tests/evaluation/miniature_root.py, and the model is a tiny one of random weights.
Writes benchmarks/results/suite_real.json, without the tasks whose data is not there, or
suite_miniatures.json, with the numbers that the paper has.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from evaluation.miniature_root import EUROSAT, write_root  # noqa: E402
from sample_runs import write_run  # noqa: E402

from flava_ds.cli import main as flava_ds  # noqa: E402
from flava_ds.evaluation.paper_table import ROWS  # noqa: E402
from flava_ds.evaluation.tasks import eurosat  # noqa: E402
from flava_ds.storage.atomic import write_json  # noqa: E402

OUT = ROOT / "benchmarks" / "results"
LIMIT = 1000
FACTS = ("model", "family", "step", "weights", "precision", "device", "limit", "versions", "bootstrap")
KEPT = ("protocol", "split", "splits", "samples", "fingerprint", "scores", "skipped", "failed")


def suite(run: Path, data: Path, *more: str) -> dict[str, Any]:
    """Runs the suite in a new folder, and returns its facts and the tasks whose data is there.

    Raises: SystemExit when the command fails.
    """
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        words = ["evaluate", run, "--suite", "all", "--data", data, "--out", out, *more]
        if status := flava_ds(list(map(str, words))):
            sys.exit(status)
        report = json.loads((Path(out) / "suite.json").read_text(encoding="utf-8"))
    tasks = {
        name: {key: result[key] for key in KEPT if key in result}
        for name, result in report["tasks"].items()
        if "no such folder" not in result.get("skipped", "")
    }
    return {fact: report[fact] for fact in FACTS} | {"tasks": tasks}


def real(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluates both models on the same samples."""
    limited = ("--limit", str(LIMIT))
    return {
        "trained": suite(options.trained, options.data, *limited),
        "untrained": suite(options.untrained, options.data, *limited),
    }


def miniatures(_: argparse.Namespace) -> dict[str, Any]:
    """Evaluates a model of random weights on miniatures of every published set."""
    for name, count in EUROSAT.items():
        setattr(eurosat, name, count)
    with tempfile.TemporaryDirectory() as folder:
        run, _ = write_run(Path(folder))
        report = suite(run, write_root(Path(folder) / "published"))
    tasks: dict[str, Any] = {}
    for row in ROWS:
        found = report["tasks"][row.task]
        scores = tasks.setdefault(row.task, found | {"scores": {}})["scores"]
        scores[row.number] = found["scores"][row.number]
    return report | {"tasks": tasks}


def main() -> None:
    """Writes what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(required=True, dest="kind")
    sets = kinds.add_parser("real")
    sets.add_argument("trained", type=Path)
    sets.add_argument("untrained", type=Path)
    sets.add_argument("--data", type=Path, required=True)
    kinds.add_parser("miniatures")
    options = parser.parse_args()
    found = {"real": real, "miniatures": miniatures}[options.kind](options)
    write_json(OUT / f"suite_{options.kind}.json", found, indent=1)


if __name__ == "__main__":
    main()
