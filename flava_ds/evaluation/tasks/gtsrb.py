"""GTSRB: 43 traffic signs; the training part of the competition and the official test part. The paper has its
probe (Table C.1)."""

from __future__ import annotations

import csv
from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    folders_in,
    number_of,
    of_files,
    pictures_in,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

CLASSES = [str(number) for number in range(43)]
LABELS = "GT-final_test.csv"


def read(folder: Path, split: str) -> Listing:
    """Lists Training/CLASS/*.ppm, or reads the test pictures' classes.

    Raises: DataError when the test file has no classes, as the one inside of the archive of pictures.
    """
    if split == "train":
        root = folder / "GTSRB/Training"
        number = number_of([f"{int(name):05d}" for name in CLASSES], root)
        named = [
            (f"{name}/{key}", number(name))
            for name in folders_in(root)
            for key in pictures_in(root / name, (".ppm",))
        ]
        return of_files(root, named, CLASSES)
    try:
        with (folder / LABELS).open(newline="", encoding="utf-8") as file:
            named = [
                (row["Filename"], int(row["ClassId"]))
                for row in csv.DictReader(file, delimiter=";", skipinitialspace=True)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{folder / LABELS}: no columns Filename and ClassId ({error}); it is in GTSRB_Final_Test_GT.zip"
        ) from error
    return of_files(folder / "GTSRB/Final_Test/Images", named, CLASSES, folder / LABELS)


DATA = PublishedImages(
    name="gtsrb",
    folder="gtsrb",
    licence="CC0-1.0",
    origin="by hand: GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip (270 MB in all) and "
    "GTSRB_Final_Test_GT.zip from the benchmark's archive",
    layout="GTSRB/Training/CLASS/*.ppm, GTSRB/Final_Test/Images/*.ppm and GT-final_test.csv",
    variants=split_as_published(
        {"test": (LABELS, "GTSRB/Final_Test/Images"), "train": ("GTSRB/Training",)}, read
    ),
)
TASKS = (ImageProbe("gtsrb_probe", DATA),)
