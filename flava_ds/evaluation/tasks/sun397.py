"""SUN397: 397 kinds of scene. The paper has its probe (Table C.1)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    Variant,
    all_needing,
    lines_of,
    number_of,
    of_files,
    pictures_in,
)
from flava_ds.evaluation.labelled import Fold
from flava_ds.evaluation.probe import ImageProbe

NAMES, PARTITIONS, HALVES = "ClassName.txt", "Partitions", 10


def classes_of(folder: Path) -> list[str]:
    """Returns the classes' folders, such as a/abbey."""
    return [line.lstrip("/") for line in lines_of(folder / NAMES)]


def at_random(folder: Path, split: str) -> Listing:
    """Splits each class 70/10/20 into train, val and test.

    Source: VISSL with its seed 0. It shuffles the order that the file system gave, which is sorted here, so
    the draw is the same everywhere and is not theirs.
    """
    draw, classes, named = random.Random(0), classes_of(folder), []
    for number, name in enumerate(classes):
        pictures = pictures_in(folder / name)
        draw.shuffle(pictures)
        start, length = round(0.7 * len(pictures)), round(0.1 * len(pictures))
        parts = {"train": (0, start), "val": (start, start + length), "test": (start + length, None)}
        named += [(f"{name}/{key}", number) for key in sorted(pictures[slice(*parts[split])])]
    return of_files(folder, named, [name[2:] for name in classes])


def in_halves(folder: Path, split: str) -> Listing:
    """Reads the ten published partitions, of 50 and 50 pictures of each class, as folds of one set.

    Raises: DataError when a partition names a picture that is not there.
    """
    files = {
        (part, number): folder / PARTITIONS / f"{part}_{number:02d}.txt"
        for number in range(1, HALVES + 1)
        for part in ("Training", "Testing")
    }
    listed = {part: [line.lstrip("/") for line in lines_of(file)] for part, file in files.items()}
    keys = sorted({key for keys in listed.values() for key in keys})
    classes, place = classes_of(folder), {key: row for row, key in enumerate(keys)}
    class_number = number_of(classes, folder / PARTITIONS)
    named = [(key, class_number(key.rsplit("/", 1)[0])) for key in keys]
    found = of_files(folder, named, [name[2:] for name in classes], folder / PARTITIONS)
    rows = {part: np.array([place[key] for key in keys]) for part, keys in listed.items()}
    folds = tuple(Fold(rows["Training", half], rows["Testing", half]) for half in range(1, HALVES + 1))
    if any(np.intersect1d(fold.train, fold.test).size for fold in folds):
        raise DataError(f"{folder / PARTITIONS}: a picture is in both halves of a partition; get it again")
    return replace(found, folds=folds)


DATA = PublishedImages(
    name="sun397",
    folder="SUN397",
    licence="research use; the photographs' own",
    origin="by hand: SUN397.tar.gz (37 GB) and, for CLIP's splits, Partitions.zip from Princeton's SUN page",
    layout="ClassName.txt, LETTER/CLASS/sun_*.jpg and Partitions/{Training,Testing}_{01,...,10}.txt",
    variants=(
        Variant("vissl", all_needing(("test", "val", "train"), NAMES, "a"), at_random),
        Variant("clip", (("test", (NAMES, "a", PARTITIONS)),), in_halves),
    ),
)
TASKS = (ImageProbe("sun397_probe", DATA),)
