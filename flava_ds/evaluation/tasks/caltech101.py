"""Caltech-101 with its background class, 102 classes in all: 30 pictures of each to learn from, the rest to
report on. The paper has its probe (Table C.1); CLIP reports the mean over the classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    Variant,
    all_needing,
    folders_in,
    of_files,
    pictures_in,
)
from flava_ds.evaluation.probe import ImageProbe

PICTURES = "101_ObjectCategories"
TRAIN = 30


def read(seed: int, folder: Path, split: str) -> Listing:
    """Draws 30 pictures of each class, class after class from one seed.

    Raises: DataError naming a class with fewer than 31.

    Source: VISSL draws with seed 0, VTAB with 1234, both from whatever order the file system gave. Names are
    sorted here, so the draw is the same everywhere, and theirs only where their file systems sorted.
    """
    root, draw = folder / PICTURES, np.random.RandomState(seed)
    classes, named = folders_in(root), []
    for number, name in enumerate(classes):
        pictures = pictures_in(root / name)
        if len(pictures) <= TRAIN:
            raise DataError(f"{root / name}: {len(pictures)} pictures, of more than {TRAIN}; unpack it again")
        train = set(draw.choice(len(pictures), TRAIN, replace=False).tolist())
        named += [
            (f"{name}/{picture}", number)
            for row, picture in enumerate(pictures)
            if (row in train) == (split == "train")
        ]
    return of_files(root, named, classes)


NEEDED = all_needing(("test", "train"), PICTURES)
DATA = PublishedImages(
    name="caltech101",
    folder="caltech101",
    licence="CC-BY-4.0",
    origin="by hand: caltech-101.zip (137 MB) from Caltech's data repository; unpack the archive in it too",
    layout="101_ObjectCategories/CLASS/*.jpg",
    variants=(Variant("vissl", NEEDED, partial(read, 0)), Variant("vtab", NEEDED, partial(read, 1234))),
)
TASKS = (ImageProbe("caltech101_probe", DATA),)
