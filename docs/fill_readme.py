"""Fills the generated blocks of README.md from committed results, so that no number there is typed by hand.

A block lies between `<!-- generated: NAME -->` and `<!-- end of generated -->`; NAME is a key of BLOCKS below. `--check` changes nothing and exits
with status 1 when README.md differs from the results.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

from flava_ds.evaluation.summary import percent
from flava_ds.evaluation.summary import rows as metric_rows

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)
IMPLEMENTATIONS = {
    "flava_ds": "flava_ds, packed",
    "huggingface": "Hugging Face, padded to 77",
    "huggingface-longest": "Hugging Face, padded to the longest",
}

LENGTHS = {"full": "all of 77 tokens", "demo": "the demo's"}


def demo(results: Path, minutes: int) -> str:
    """Writes a demo's held-out metrics, gates, phases and machine from demo_<minutes>min.json: a run's demo.json with the `metrics` of its
    evaluation.json added."""
    summary = read_json(results / f"demo_{minutes}min.json")
    gates = [[gate["what"], gate["value"], gate["wanted"], "yes" if gate["passed"] else "**no**"] for gate in summary["gates"]]
    metrics = [[label, *map(percent, numbers)] for label, *numbers in metric_rows(summary)]
    phases = ", ".join(f"{phase['name']} {phase['seconds']:.0f} s" for phase in summary["phases"])
    machine = summary["machine"]
    return (
        f"{markdown_table(['held-out data', 'value', 'chance', 'nearest neighbour on pixels'], metrics)}\n\n"
        f"{markdown_table(['gate', 'result', 'wanted', 'reached'], gates)}\n\n"
        f"{summary['steps']} steps of {summary['recipe']} in {summary['precision']} on {summary['ranks']} ranks, {summary['seconds'] / 60:.1f} minutes in "
        f"all ({phases}); {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}, deepspeed {machine['deepspeed']}.\n"
    )


def step(results: Path) -> str:
    """Writes the time and memory of one step of each kind against Hugging Face's model, from step_vs_huggingface.json."""
    found = read_json(results / "step_vs_huggingface.json")
    rows = []
    for row in found["rows"]:
        low, high = row["time_over_flava_ds_range"]
        seconds = [f"{row['seconds'][kind]:.2f}" for kind in ("pair", "image", "text")]
        ratio = f"{row['time_over_flava_ds']:.2f}" + (f" ({low:.2f} to {high:.2f})" if low != high else "")
        rows.append([LENGTHS[row["lengths"]], IMPLEMENTATIONS[row["implementation"]], *seconds, ratio, f"{row['peak_mib']:.0f}"])
    header = ["captions", "implementation", "pair, s", "image, s", "text, s", "time over flava_ds", "peak MiB"]
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"Batches of {found['batch']}, {found['threads']} threads of {found['machine']}, {found['rounds']} rounds, torch {found['torch']}, "
        f"transformers {found['transformers']}; `python benchmarks/step_vs_huggingface.py` measures again.\n"
    )


def pictures(_: Path) -> str:
    """Shows the pictures under docs/images, each with the words of its file's name; nothing while there are none."""
    files = sorted(path for path in (ROOT / "docs" / "images").glob("*") if path.suffix in (".png", ".svg", ".webp"))
    return "".join(f"![{path.stem.replace('_', ' ')}]({path.relative_to(ROOT)})\n" for path in files)


BLOCKS = {
    "demo_10min": functools.partial(demo, minutes=10),
    "demo_60min": functools.partial(demo, minutes=60),
    "step": step,
    "pictures": pictures,
}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a committed result."""
    return json.loads(path.read_text(encoding="utf-8"))


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
        return f"{opening}\n{body}\n{closing}" if body else f"{opening}{closing}"

    return BLOCK.sub(replace, text), absent


def main() -> int:
    """Rewrites README.md, or compares it."""
    parser = argparse.ArgumentParser(description="Fill the generated blocks of README.md from committed results.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results (default: benchmarks/results)")
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
