"""Food-101: 101 dishes; the training images are noisy on purpose. The paper has its probe (Table C.1)."""

from __future__ import annotations

from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    json_of,
    of_files,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe


def read(folder: Path, split: str) -> Listing:
    """Reads meta/SPLIT.json, which maps each class to its pictures; classes are those of all splits."""
    files = {part: folder / "meta" / f"{part}.json" for part in ("train", "test")}
    pictures = {part: _pictures(file) for part, file in files.items() if part == split or file.is_file()}
    classes = sorted(set().union(*pictures.values()))
    named = [
        (f"{key}.jpg", number) for number, name in enumerate(classes) for key in pictures[split].get(name, ())
    ]
    return of_files(folder / "images", named, classes, files[split])


def _pictures(file: Path) -> dict[str, list[str]]:
    """Reads class -> its pictures. Raises: DataError."""
    found = json_of(file)
    if not isinstance(found, dict) or not all(isinstance(names, list) for names in found.values()):
        raise DataError(f"{file}: does not map each class to its pictures; get the file again")
    return found


DATA = PublishedImages(
    name="food101",
    folder="food-101",
    licence="the photographs are Foodspotting's; research use under fair use, as the authors say",
    origin="by hand: food-101.tar.gz (5 GB) from ETH Zurich's Computer Vision Lab, unpacked",
    layout="meta/train.json, meta/test.json and images/CLASS/*.jpg",
    variants=split_as_published(
        {"test": ("meta/test.json", "images"), "train": ("meta/train.json", "images")}, read
    ),
)
TASKS = (ImageProbe("food101_probe", DATA),)
