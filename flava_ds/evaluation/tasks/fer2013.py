"""FER2013: seven expressions of faces in grey; both test parts are reported on. The paper has its probe
(Table C.1)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    of_array,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

FILES = ("fer2013.csv", "icml_face_data.csv")
USAGE = {"test": ("PublicTest", "PrivateTest"), "train": ("Training",)}
CLASSES = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
EDGE = 48


def read(folder: Path, split: str) -> Listing:
    """Reads the pictures of a split from one of the two published files, whose columns differ in blanks.

    Raises: DataError naming the line of another form, or a file without labels.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])
    pixels, labels = [], []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, skipinitialspace=True):
                if row["Usage"] in USAGE[split]:
                    labels.append(int(row["emotion"]))
                    pixels.append(np.array(row["pixels"].split(), dtype=np.uint8).reshape(EDGE, EDGE))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise DataError(
            f"{file}: face {len(pixels)} of {split} has no emotion, {EDGE * EDGE} pixels and Usage "
            f"({type(error).__name__}: {error}); Kaggle's test.csv has no labels and will not do"
        ) from error
    return of_array(np.array(pixels, dtype=np.uint8), np.array(labels), CLASSES, split, [file])


class Fer2013(PublishedImages):
    """Either of the two files will do."""

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for one of them."""
        return split in (None, *USAGE) and any((folder / name).is_file() for name in FILES)


DATA = Fer2013(
    name="fer2013",
    folder="fer2013",
    licence="Kaggle's competition terms; research use",
    origin="by hand, with a login: fer2013.tar.gz (97 MB) or icml_face_data.csv of Kaggle's 'Challenges in "
    "Representation Learning: Facial Expression Recognition'",
    layout="fer2013.csv or icml_face_data.csv",
    variants=split_as_published({"test": FILES[:1], "train": FILES[:1]}, read),
)
TASKS = (ImageProbe("fer2013_probe", DATA),)
