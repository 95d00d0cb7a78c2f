"""Country211: which of 211 countries a photograph was taken in. The paper has its probe (Table C.1)."""

from __future__ import annotations

from pathlib import Path

from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    by_class_folder,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

FOLDERS = {"test": "test", "val": "valid", "train": "train"}


def read(folder: Path, split: str) -> Listing:
    """Lists a split's countries."""
    return by_class_folder(folder / FOLDERS[split])


DATA = PublishedImages(
    name="country211",
    folder="country211",
    licence="each photograph's own, of Creative Commons (YFCC100M)",
    origin="by hand: country211.tgz (11 GB), linked from CLIP's data/country211.md, unpacked",
    layout="{train,valid,test}/COUNTRY/*.jpg",
    variants=split_as_published({split: (name,) for split, name in FOLDERS.items()}, read),
)
TASKS = (ImageProbe("country211_probe", DATA),)
