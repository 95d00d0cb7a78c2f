"""A root with miniatures of the data of the paper's 35 tasks, of Winoground, and a folder of images."""

from __future__ import annotations

from pathlib import Path

from evaluation import language_world, published_world
from evaluation.color_world import write_image_folder, write_karpathy

EUROSAT = {"TRAIN": 5, "TEST": 3}
"""What to set in flava_ds/evaluation/tasks/eurosat.py for its miniature: how many pictures of each class
a split has is only in the code, as no published file says it."""


def write_root(root: Path) -> Path:
    """Writes them, each in the layout in which it is published."""
    for write in (*published_world.WRITERS.values(), *language_world.WRITERS.values()):
        write(root)
    write_karpathy(root / "flickr30k", "dataset_flickr30k.json", "flickr30k-images")
    write_karpathy(root / "coco", "dataset_coco.json", "val2014", filepath="val2014")
    write_image_folder(root / "image_folder", {"train": 6, "test": 3})
    return root
