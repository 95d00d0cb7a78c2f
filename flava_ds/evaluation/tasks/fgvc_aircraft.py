"""FGVC-Aircraft by its 100 variants, learned from train and val together.

The paper has its probe (Table C.1);
CLIP reports the mean over the classes.
"""

from __future__ import annotations

from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    lines_of,
    number_of,
    of_files,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe


def read(folder: Path, split: str) -> Listing:
    """Reads images_variant_SPLIT.txt: lines of a picture's number and its variant.

    Raises: DataError naming a line of another form.
    """
    listed = folder / f"data/images_variant_{split}.txt"
    classes = lines_of(folder / "data/variants.txt")
    number = number_of(classes, listed)
    rows = [line.partition(" ") for line in lines_of(listed)]
    if wrong := next((key for key, _, name in rows if not name), None):
        raise DataError(f"{listed}: the line '{wrong}' is not a picture and its variant; get it again")
    return of_files(
        folder / "data/images", [(f"{key}.jpg", number(name)) for key, _, name in rows], classes, listed
    )


DATA = PublishedImages(
    name="fgvc_aircraft",
    folder="fgvc-aircraft-2013b",
    licence="research use only, no commercial use; the photographers keep their rights",
    origin="by hand: fgvc-aircraft-2013b.tar.gz (2.75 GB) from Oxford's Visual Geometry Group, unpacked",
    layout="data/variants.txt, data/images_variant_{train,val,test}.txt and data/images/*.jpg",
    variants=split_as_published(
        {
            split: (f"data/images_variant_{split}.txt", "data/variants.txt", "data/images")
            for split in ("test", "val", "train")
        },
        read,
    ),
)
TASKS = (ImageProbe("fgvc_aircraft_probe", DATA),)
