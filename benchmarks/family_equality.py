"""Runs the tests that compare each family with its peers and its splits, for the tables of docs/equality.md.

    python benchmarks/family_equality.py && make docs

The tests tell what they measure (tests/told.py), and this reads it from their JUnit XML; nothing is computed
here. Takes some minutes on two cores.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts import parser_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "family_equality.json"
FOLDERS = ("tests/families", "tests/hf/test_parity.py", "tests/layers/test_two_streams.py")
FOLDERS += ("tests/layers/test_positioned.py",)
NAMES = ("agree", "published_model", "theirs", "detrs", "give_the_same", "same_in_every")
"""Parts of the names of tests that tell something; others that match tell nothing."""


def read(file: Path) -> list[dict[str, Any]]:
    """Returns what the tests of a JUnit XML told. Raises: SystemExit if one of them failed."""
    root = ET.parse(file).getroot()
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    failed += [case.get("name") for case in root.iter("testcase") if case.find("error") is not None]
    if failed:
        raise SystemExit(f"error: failed, so nothing is written: {', '.join(map(str, failed))}")
    found = [own.get("value", "") for own in root.iter("property") if own.get("name") == "told"]
    return [json.loads(own) for own in found]


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins rows that differ in what was found alone, and keeps the largest; sorted."""
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = kept.setdefault(json.dumps({**row, "found": None}, sort_keys=True), row)
        if row["table"] == "splits":
            own["found"] = max(own["found"], row["found"])
        else:
            own["found"] = {name: max(own["found"][name], row["found"][name]) for name in row["found"]}
    return [kept[name] for name in sorted(kept)]


def main() -> int:
    """Runs the tests and writes what they told."""
    parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "told.xml"
        words = ["-k", f"({' or '.join(NAMES)}) and not base_model", "--junitxml"]
        words += [str(file), "-o", "junit_family=xunit1", "-p", "no:cacheprovider", *FOLDERS]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment, check=False)
        rows = merged(read(file))
    packages = ("torch", "transformers", "deepspeed")
    found = {"machine": platform.machine(), **{name: metadata.version(name) for name in packages}}
    RESULTS.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
