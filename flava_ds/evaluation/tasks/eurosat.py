"""EuroSAT: ten kinds of land from satellites, the pictures in colour. Its authors publish no split. The paper
has its probe (Table C.1)."""

from __future__ import annotations

from pathlib import Path

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

TRAIN, TEST = 1000, 500


def read(folder: Path, split: str) -> Listing:
    """Takes the first 1,000 pictures of each class, by name, to learn from, and the next 500 to report on.

    Raises: DataError naming a class with fewer than 1,500.

    Source: VISSL. CLIP has the same numbers and does not say which pictures.
    """
    root = folder / "2750"
    rows = slice(TRAIN) if split == "train" else slice(TRAIN, TRAIN + TEST)
    classes, named = folders_in(root), []
    for number, name in enumerate(classes):
        pictures = pictures_in(root / name)
        if len(pictures) < TRAIN + TEST:
            found = f"{len(pictures)} pictures, of at least {TRAIN + TEST}"
            raise DataError(f"{root / name}: {found}; unpack EuroSAT.zip again")
        named += [(f"{name}/{picture}", number) for picture in pictures[rows]]
    return of_files(root, named, classes)


DATA = PublishedImages(
    name="eurosat",
    folder="eurosat",
    licence="MIT",
    origin="by hand: EuroSAT.zip (94 MB, the pictures in colour) from its authors' page, unpacked",
    layout="2750/CLASS/*.jpg",
    variants=(Variant("vissl", all_needing(("test", "train"), "2750"), read),),
)
TASKS = (ImageProbe("eurosat_probe", DATA),)
