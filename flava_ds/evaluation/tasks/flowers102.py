"""Oxford Flowers: 102 kinds, ten pictures of each to learn from. The paper has its probe (Table C.1); CLIP
reports the mean over the classes."""

from __future__ import annotations

from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    mat_of,
    of_files,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

IDS = {"test": "tstid", "val": "valid", "train": "trnid"}
CLASSES = 102


def read(folder: Path, split: str) -> Listing:
    """Reads which pictures are in a split, and the class of each picture from 1.

    Raises: DataError when the two files do not fit.
    """
    ids = [int(number) for number in mat_of(folder / "setid.mat", IDS[split])]
    labels = [int(label) for label in mat_of(folder / "imagelabels.mat", "labels")]
    if not all(0 < number <= len(labels) for number in ids):
        raise DataError(f"{folder}: setid.mat names a picture that imagelabels.mat has no label for")
    named = [(f"image_{number:05d}.jpg", labels[number - 1] - 1) for number in ids]
    return of_files(
        folder / "jpg", named, [str(number + 1) for number in range(CLASSES)], folder / "setid.mat"
    )


DATA = PublishedImages(
    name="flowers102",
    folder="flowers-102",
    licence="research use",
    origin="by hand: 102flowers.tgz (330 MB), imagelabels.mat and setid.mat from Oxford's VGG",
    layout="imagelabels.mat, setid.mat and jpg/image_*.jpg",
    variants=split_as_published({split: ("setid.mat", "imagelabels.mat", "jpg") for split in IDS}, read),
)
TASKS = (ImageProbe("flowers102_probe", DATA),)
