"""How well a run draws from captions, and writes them, before and after further training:

    flava-ds train demo_generate --ranks 1 --initial-weights runs/demo-hour
    flava-ds evaluate runs/demo_generate
    python benchmarks/drawing.py runs/demo-hour runs/demo_generate && make docs

Reads both runs' evaluation.json and writes benchmarks/results/drawing.json, where rows of runs with other
names stay, and docs/images/drawn/before_and_after.png: for some held-out captions what the first model draws,
what the second draws, and the picture itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from scripts import parser_of, read_results

import flava_ds
from flava_ds import config as configuration
from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.evaluation.labelled import spaced
from flava_ds.recipes.demo import DATA

SHEET = Path(__file__).parents[1] / "docs" / "images" / "drawn" / "before_and_after.png"
CAPTIONS, EDGE, LINE = 12, 72, 12
"""Captions on the sheet, pixels of a picture's edge, and of a line of text."""
RESULT = Path(__file__).parent / "results" / "drawing.json"


def main() -> int:
    """Keeps what concerns drawing and writing of each run."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="before, and after")
    rows = read_results(RESULT, [])
    runs = parser.parse_args().runs
    for run in runs:
        if not (run / "evaluation.json").is_file():
            print(f"error: {run}: no evaluation.json there; run `flava-ds evaluate {run}`", file=sys.stderr)
            return 2
        found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        kept = ("drawing/", "writing/")
        metrics = {name: value for name, value in found["metrics"].items() if name.startswith(kept)}
        rows = [row for row in rows if row["run"] != run.name]
        rows.append({"run": run.name, "step": found["step"], "metrics": metrics})
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw_sheet(runs)
    print(RESULT, SHEET, sep="\n")
    return 0


def draw_sheet(runs: list[Path]) -> None:
    """Draws held-out captions, evenly spaced, by both runs, beside their pictures."""
    every = build_inputs(configuration.load(runs[0] / "config.json"), DATA).unseen_style
    samples = every.select(spaced(len(every), CAPTIONS), "captions to draw")
    columns = [flava_ds.load(run).draw(samples.captions, seed=0) for run in runs]
    columns.append([Image.fromarray(one.permute(1, 2, 0).numpy()) for one in samples.pixels(EDGE)])
    width = 3 * (EDGE + 4) + 420
    sheet = Image.new("RGB", (width, LINE + CAPTIONS * (EDGE + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(zip(("before", "after", "true"), columns, strict=True)):
        pen.text((column * (EDGE + 4), 0), name, fill="black")
        for row, picture in enumerate(pictures):
            place = column * (EDGE + 4), LINE + row * (EDGE + 4)
            sheet.paste(picture.resize((EDGE, EDGE), Image.Resampling.NEAREST), place)
    for row, caption in enumerate(samples.captions):
        pen.text((3 * (EDGE + 4) + 8, LINE + row * (EDGE + 4) + EDGE // 2), caption, fill="black")
    SHEET.parent.mkdir(exist_ok=True)
    sheet.save(SHEET, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
