"""docs/regions.md: how good the committed detector is, from the record beside it."""

from __future__ import annotations

import json
from pathlib import Path

from blocks import markdown_table
from flava_ds.evaluation.table import percent
from flava_ds.regions.detector import NAMED

SPLITS = {
    "train": "training styles",
    "unseen_style": "unseen styles",
    "unseen_concepts": "concepts never seen",
}


def detector(root: Path) -> str:
    """Lists average precisions on scenes and on drawings alone."""
    record = json.loads(NAMED["demo"].with_suffix(".json").read_text(encoding="utf-8"))
    rows = []
    for split, name in SPLITS.items():
        numbers = [record["quality"][f"{split}, {of}"] for of in ("scenes", "alone")]
        rows.append([name, *(percent(own[key]) for own in numbers for key in ("ap50", "ap50_places"))])
    header = ["drawings", "scenes", "scenes, places alone", "one drawing", "one drawing, place alone"]
    training = record["training"]
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"Mean over the subgroups of the average precision at half overlap (AP50), on "
        f"{record['evaluated_scenes']:,} pictures each; for places alone, as if there were one class. "
        f"Trained in {training['total_steps']:,} steps of {training['batch_size']} pictures, seed "
        f"{training['seed']}.\n"
    )


BLOCKS = {"demo_detector": detector}
