"""STL-10: ten classes at 96 pixels, learned ten times from 1,000 of the 5,000 training images, as published.
The paper has its probe (Table C.1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    lines_of,
    of_array,
    split_as_published,
)
from flava_ds.evaluation.labelled import Fold
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.stored import read_bytes

SHAPE = (3, 96, 96)
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt", "fold_indices.txt")


def read(folder: Path, split: str) -> Listing:
    """Reads the training and the test images as one set with ten folds.

    Raises: DataError when a file has another length, or a fold names an image that is not there.
    """
    files = [folder / f"{part}_{kind}.bin" for part in ("train", "test") for kind in "Xy"]
    pixels, labels = zip(*(_part(folder, part) for part in ("train", "test")), strict=True)
    listed = folder / "fold_indices.txt"
    try:
        folds = [np.array(line.split(), dtype=np.int64) for line in lines_of(listed)]
    except ValueError as error:
        raise DataError(f"{listed}: not lines of numbers ({error}); get it again") from error
    if not folds or any(rows.max() >= len(labels[0]) or rows.min() < 0 for rows in folds):
        raise DataError(f"{listed}: names images beyond {len(labels[0])}; get it again")
    names = lines_of(folder / "class_names.txt")
    found = of_array(np.concatenate(pixels), np.concatenate(labels), names, "train and test", files)
    test = np.arange(len(labels[0]), len(found.labels))
    return replace(found, folds=tuple(Fold(rows, test) for rows in folds))


def _part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one part's pictures, which are stored column by column, and its classes, which count from 1."""
    raw = np.frombuffer(read_bytes(folder / f"{part}_X.bin"), np.uint8)
    labels = np.frombuffer(read_bytes(folder / f"{part}_y.bin"), np.uint8).astype(np.int64) - 1
    if len(raw) != len(labels) * int(np.prod(SHAPE)):
        raise DataError(f"{folder / part}_X.bin: has {len(raw)} bytes for {len(labels)} labels; get it again")
    return raw.reshape(-1, *SHAPE).transpose(0, 1, 3, 2), labels


DATA = PublishedImages(
    name="stl10",
    folder="stl10_binary",
    licence="that of ImageNet, which the images are from: research use",
    origin="by hand: stl10_binary.tar.gz (2.6 GB) from Stanford's STL-10 page, unpacked",
    layout=", ".join(FILES),
    variants=split_as_published({"test": FILES}, read),
)
TASKS = (ImageProbe("stl10_probe", DATA),)
