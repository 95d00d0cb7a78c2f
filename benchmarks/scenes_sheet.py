"""Draws a sheet of scenes in unseen styles, with what the demo's detector finds, a question and a statement.

    python benchmarks/scenes_sheet.py

The picture goes to docs/images/regions/scenes.png, which docs/regions.md shows.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw
from scripts import parser_of

from flava_ds.demo.dataset import unpack
from flava_ds.demo.scene_texts import ask, state
from flava_ds.demo.scenes import CANVAS, draw_scene, paint, read_drawings
from flava_ds.regions.detector import load_detector

RESULT = Path(__file__).parents[1] / "docs" / "images" / "regions" / "scenes.png"
SPLIT, SEED = "unseen_style", 3
ACROSS, DOWN, SCALE = 5, 2, 2
MARGIN, LINE = 14, 12
CHARACTERS = 36
MOST_SHOWN = 4
"""Detections under a scene; the boxes of all are drawn."""


def main() -> None:
    """Draws the sheet."""
    parser_of(__doc__).parse_args()
    drawings, detector = read_drawings(unpack(), SPLIT), load_detector("demo")
    scenes = [draw_scene(drawings, SEED, number) for number in range(ACROSS * DOWN)]
    pictures = torch.stack([paint(drawings, scene) for scene in scenes])
    regions, edge = detector(pictures), SCALE * CANVAS
    width, height = edge + 4 * MARGIN, edge + (MOST_SHOWN + 7) * LINE
    sheet = Image.new("RGB", (ACROSS * width, DOWN * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, scene in enumerate(scenes):
        x, y = number % ACROSS * width + MARGIN, number // ACROSS * height + MARGIN
        pixels = rearrange(pictures[number], "c h w -> h w c").numpy()
        sheet.paste(Image.fromarray(pixels).resize((edge, edge), Image.Resampling.BICUBIC), (x, y))
        draw.rectangle((x - 1, y - 1, x + edge, y + edge), outline="lightgrey")
        lines = []
        for row in range(int(regions.cu_seqlens[number]) + 1, int(regions.cu_seqlens[number + 1])):
            box = (edge * regions.boxes[row]).tolist()
            draw.rectangle((x + box[0], y + box[1], x + box[2], y + box[3]), outline="crimson", width=2)
            score, best = regions.classes[row].max(0)
            lines.append(f"{detector.class_names[int(best)].replace('-', ' ')} {100 * score:.0f} %")
        key = f"sheet {number}"
        asked, said = (make(drawings, scene, key, number) for make in (ask, state))
        lines = lines[:MOST_SHOWN] + [""] * (MOST_SHOWN - len(lines))
        for text in (f"{asked.text} {asked.answer}", f"{said.text}: {said.fit}"):
            lines += textwrap.wrap(text, CHARACTERS, subsequent_indent="    ")
        draw.text((x, y + edge + 4), "\n".join(lines), fill="black", spacing=1)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(RESULT, optimize=True)
    print(f"{RESULT}: {RESULT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
