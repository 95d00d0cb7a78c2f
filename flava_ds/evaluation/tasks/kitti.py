"""KITTI: how far the nearest vehicle is, in four classes made from the 3D boxes. The paper has its probe
(Table C.1)."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    Variant,
    all_needing,
    lines_of,
    of_files,
    pictures_in,
)
from flava_ds.evaluation.probe import ImageProbe

PICTURES, BOXES, MAPPING = "training/image_2", "training/label_2", "mapping"
VEHICLES = {"Car", "Van", "Truck"}
METRES, VTAB_METRES = (0.0, 8.0, 20.0), (-100.0, 8.0, 20.0)
"""Where classes end. A vehicle beside or behind the camera is none to VISSL, and the nearest one to VTAB."""
CLASSES = ("no vehicle", "below 8 m", "below 20 m", "above 20 m")
VTAB_SEED = 123


def distance_class(file: Path, metres: tuple[float, ...] = METRES) -> int:
    """Returns the class of the nearest vehicle's distance: of z, the fourteenth field of a line.

    Raises: DataError naming a file of another form.
    """
    try:
        boxes = [line.split() for line in file.read_text().splitlines()]
        nearest = min((float(box[13]) for box in boxes if box[0] in VEHICLES), default=-np.inf)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{file}: no boxes of KITTI's object detection ({error}); get it again") from error
    return bisect.bisect_left(metres, nearest)


def at_random(folder: Path, pictures: list[str]) -> dict[str, np.ndarray]:
    """Draws 80 % of the pictures to learn from. Source: VISSL, which draws without a seed; here it is 0."""
    order = np.random.RandomState(0).permutation(len(pictures))
    return dict(zip(("train", "test"), np.split(order, [round(0.8 * len(pictures))]), strict=True))


def by_video(folder: Path, pictures: list[str]) -> dict[str, np.ndarray]:
    """Draws a tenth of the videos to report on and another to choose the penalty: 711 and 423 pictures.

    Raises: DataError when the devkit's mapping does not fit.

    Source: VTAB, by TensorFlow Datasets' split; CLIP has the same 711.
    """
    file = folder / MAPPING / "train_rand.txt"
    lines = lines_of(folder / MAPPING / "train_mapping.txt")
    try:
        numbers = [int(number) for line in lines_of(file) for number in line.split(",") if number.strip()]
        videos = np.array([lines[number - 1].split()[1] for number in numbers])
    except (ValueError, IndexError) as error:
        raise DataError(f"{file}: does not fit train_mapping.txt ({error}); get the devkit again") from error
    if len(videos) != len(pictures):
        raise DataError(f"{file}: maps {len(videos)} pictures, but {PICTURES} has {len(pictures)}")
    draw, names = np.random.RandomState(VTAB_SEED), sorted(set(videos.tolist()))
    each = max(1, len(names) // 10)
    test = set(draw.choice(names, each, replace=False).tolist())
    val = set(draw.choice(sorted(set(names) - test), each, replace=False).tolist())
    part = np.array(["test" if v in test else "val" if v in val else "train" for v in videos.tolist()])
    return {split: np.flatnonzero(part == split) for split in ("train", "val", "test")}


def read(
    rows_of: Callable[[Path, list[str]], dict[str, np.ndarray]],
    metres: tuple[float, ...],
    folder: Path,
    split: str,
) -> Listing:
    """Lists a split's pictures with their classes."""
    pictures = pictures_in(folder / PICTURES, (".png",))
    chosen = [pictures[row] for row in np.sort(rows_of(folder, pictures)[split])]
    named = [(key, distance_class(folder / BOXES / f"{Path(key).stem}.txt", metres)) for key in chosen]
    return of_files(folder / PICTURES, named, CLASSES)


VISSL_FILES = all_needing(("test", "train"), PICTURES, BOXES)
VTAB_FILES = all_needing(("test", "val", "train"), PICTURES, BOXES, MAPPING)
DATA = PublishedImages(
    name="kitti",
    folder="Kitti/raw",
    licence="CC-BY-NC-SA-3.0",
    origin="by hand, with an address: data_object_image_2.zip (12 GB), data_object_label_2.zip and, for the "
    "splits by video, devkit_object.zip from the KITTI page, unpacked in one folder",
    layout="training/image_2/*.png, training/label_2/*.txt and mapping/{train_rand,train_mapping}.txt",
    variants=(
        Variant("vissl", VISSL_FILES, partial(read, at_random, METRES)),
        Variant("vtab", VTAB_FILES, partial(read, by_video, VTAB_METRES)),
        Variant("clip", VTAB_FILES, partial(read, by_video, VTAB_METRES)),
    ),
)
TASKS = (ImageProbe("kitti_probe", DATA),)
