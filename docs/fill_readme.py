"""Fills the generated blocks of README.md from committed results, so that no number there is typed by hand.

A block lies between `<!-- generated: NAME -->` and `<!-- end of generated -->`; NAME is a function below. `--check` changes nothing and exits
with status 1 when README.md differs from the results.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)


def demo(results: Path) -> str:
    """Writes the demo's phases, gates and machine from demo.json, which `flava-ds demo` leaves in the run's folder."""
    summary = json.loads((results / "demo.json").read_text(encoding="utf-8"))
    rows = [[gate["what"], gate["value"], gate["wanted"], "yes" if gate["passed"] else "**no**"] for gate in summary["gates"]]
    phases = ", ".join(f"{phase['name']} {phase['seconds']:.0f} s" for phase in summary["phases"])
    machine = summary["machine"]
    return (
        f"{markdown_table(['what', 'result', 'wanted', 'reached'], rows)}\n\n"
        f"{summary['steps']} steps of {summary['recipe']} in {summary['precision']}, {summary['seconds'] / 60:.1f} minutes in all ({phases}); "
        f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}, deepspeed {machine['deepspeed']}.\n"
    )


def kernels(results: Path) -> str:
    """Writes the operators' bench from kernels.csv: one row for each operator and shape."""
    with (results / "kernels.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return markdown_table(header, rows) + "\n"


BLOCKS = {function.__name__: function for function in (demo, kernels)}


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Formats a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def fill(text: str, results: Path) -> tuple[str, list[str]]:
    """Returns `text` with its blocks filled, and the names of those whose results are not there; they say so.

    Raises: SystemExit on a block that no function fills.
    """
    absent = []

    def replace(match: re.Match[str]) -> str:
        opening, name, _, closing = match.groups()
        if name not in BLOCKS:
            raise SystemExit(f"error: README.md has a generated block '{name}', but only {', '.join(BLOCKS)} can be filled")
        try:
            body = BLOCKS[name](results)
        except FileNotFoundError as error:
            absent.append(f"{name} ({Path(error.filename).name})")
            body = "Not measured yet.\n"
        return f"{opening}\n{body}\n{closing}"

    return BLOCK.sub(replace, text), absent


def main() -> int:
    """Rewrites README.md, or compares it."""
    parser = argparse.ArgumentParser(description="Fill the generated blocks of README.md from committed results.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks", help="folder of the results (default: benchmarks)")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when the README differs")
    options = parser.parse_args()
    before = options.readme.read_text(encoding="utf-8")
    after, absent = fill(before, options.results)
    for name in absent:
        print(f"no results for block {name}", file=sys.stderr)
    if options.check:
        return int(before != after)
    options.readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
