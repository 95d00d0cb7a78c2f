"""DTD, the Describable Textures: 47 of them, the first of ten partitions.

The paper has its probe (Table C.1).
"""

from __future__ import annotations

from pathlib import Path

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
    """Reads labels/SPLIT1.txt: lines of CLASS/NAME.jpg; classes are those of all splits."""
    listed, files = folder / f"labels/{split}1.txt", sorted((folder / "labels").glob("*1.txt"))
    keys = lines_of(listed)
    classes = sorted({line.split("/")[0] for file in files for line in lines_of(file)})
    number = number_of(classes, listed)
    return of_files(folder / "images", [(key, number(key.split("/")[0])) for key in keys], classes, listed)


DATA = PublishedImages(
    name="dtd",
    folder="dtd/dtd",
    licence="research use",
    origin="by hand: dtd-r1.0.1.tar.gz (600 MB) from Oxford's Visual Geometry Group, unpacked",
    layout="labels/{train,val,test}1.txt and images/CLASS/*.jpg",
    variants=split_as_published(
        {split: (f"labels/{split}1.txt", "images") for split in ("test", "val", "train")}, read
    ),
)
TASKS = (ImageProbe("dtd_probe", DATA),)
