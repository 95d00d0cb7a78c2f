"""MNIST: handwritten digits. The paper has its probe (Table C.1)."""

from __future__ import annotations

from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    idx_of,
    of_array,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

PREFIX = {"test": "t10k", "train": "train"}


def read(folder: Path, split: str) -> Listing:
    """Reads a split's two idx files. Raises: DataError when they do not fit."""
    files = [folder / f"{PREFIX[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    pictures, labels = map(idx_of, files)
    if pictures.ndim != 3 or labels.shape != pictures.shape[:1]:
        raise DataError(
            f"{folder}: {PREFIX[split]} has pictures {list(pictures.shape)} and labels {list(labels.shape)}, "
            "which do not belong together; get both again"
        )
    return of_array(pictures, labels, [str(digit) for digit in range(10)], PREFIX[split], files)


DATA = PublishedImages(
    name="mnist",
    folder="MNIST/raw",
    licence="CC-BY-SA-3.0",
    origin="by hand: MNIST's four .gz files (11 MB), each unpacked with gunzip",
    layout="{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte",
    variants=split_as_published(
        {
            split: (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
            for split, prefix in PREFIX.items()
        },
        read,
    ),
)
TASKS = (ImageProbe("mnist_probe", DATA),)
