"""Oxford-IIIT Pets: 37 breeds.

The paper has its probe (Table C.1); CLIP reports the mean over the classes.
"""

from __future__ import annotations

from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    lines_of,
    of_files,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

FILES = {"test": "annotations/test.txt", "train": "annotations/trainval.txt"}


def read(folder: Path, split: str) -> Listing:
    """Reads a split's list: lines of a picture, its class from 1, its species and its breed within that.

    Raises: DataError naming a line of another form.
    """
    listed = folder / FILES[split]
    rows = []
    for line in lines_of(listed):
        key, *numbers = line.split()
        if len(numbers) != 3 or not numbers[0].isdigit():
            raise DataError(f"{listed}: the line '{line}' is not a picture and three numbers; get it again")
        rows.append((key, int(numbers[0]) - 1))
    breeds = {number: key.rsplit("_", 1)[0].replace("_", " ") for key, number in rows}
    if sorted(breeds) != list(range(len(breeds))):
        raise DataError(f"{listed}: its classes are not 1 to {len(breeds)}; get the file again")
    classes = [breeds[number] for number in range(len(breeds))]
    return of_files(folder / "images", [(f"{key}.jpg", number) for key, number in rows], classes, listed)


DATA = PublishedImages(
    name="oxford_pets",
    folder="oxford-iiit-pet",
    licence="CC-BY-SA-4.0",
    origin="by hand: images.tar.gz (780 MB) and annotations.tar.gz from Oxford's Visual Geometry Group",
    layout="annotations/trainval.txt, annotations/test.txt and images/*.jpg",
    variants=split_as_published({split: (file, "images") for split, file in FILES.items()}, read),
)
TASKS = (ImageProbe("oxford_pets_probe", DATA),)
