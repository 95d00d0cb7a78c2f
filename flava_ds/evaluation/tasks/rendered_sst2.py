"""Rendered SST2: whether the sentence in a picture of text is positive.

The paper has its probe (Table C.1).
"""

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
    """Lists a split's two folders."""
    return by_class_folder(folder / FOLDERS[split])


DATA = PublishedImages(
    name="rendered_sst2",
    folder="rendered-sst2",
    licence="none is stated; the sentences are the Stanford Sentiment Treebank's",
    origin="by hand: rendered-sst2.tgz (131 MB), linked from CLIP's data/rendered-sst2.md, unpacked",
    layout="{train,valid,test}/{negative,positive}/*.png",
    variants=split_as_published(
        {s: (f"{name}/negative", f"{name}/positive") for s, name in FOLDERS.items()}, read
    ),
)
TASKS = (ImageProbe("rendered_sst2_probe", DATA),)
