"""PatchCamelyon: whether the middle of a patch of tissue holds tumour.

The paper has its probe (Table C.1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.datasets.published_images import Listing, PublishedImages, split_as_published
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.stored import Parts

NAME = {"test": "test", "val": "valid", "train": "train"}


def read(folder: Path, split: str) -> Listing:
    """Opens a split's pictures, of which each is read when it is needed, and reads its labels.

    Raises: DataError when a file is damaged or the two do not fit; UserError where h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("pcam needs h5py; `pip install 'flava_ds[eval]'`") from error
    pictures, labels = (
        folder / f"camelyonpatch_level_2_split_{NAME[split]}_{part}.h5" for part in ("x", "y")
    )
    try:
        stored = h5py.File(pictures, "r")["x"]
        with h5py.File(labels, "r") as file:
            found = np.asarray(file["y"]).reshape(-1).astype(np.int64)
    except (OSError, KeyError) as error:
        raise DataError(f"{pictures} or {labels.name}: not PCAM's HDF5 ({error}); unpack it again") from error
    if len(stored) != len(found):
        raise DataError(f"{pictures}: {len(stored)} pictures for {len(found)} labels; get both again")

    def load(row: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(stored[row].transpose(2, 0, 1)))

    keys = tuple(f"{NAME[split]}/{row}" for row in range(len(found)))
    return Listing(keys, Parts(load, [pictures]), found, ("normal tissue", "tumour tissue"))


DATA = PublishedImages(
    name="pcam",
    folder="pcam",
    licence="CC0-1.0",
    origin="by hand: the six camelyonpatch_level_2_split_*.h5.gz (8 GB) from the authors' Google Drive, "
    "each unpacked with gunzip",
    layout="camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5",
    variants=split_as_published(
        {
            split: tuple(f"camelyonpatch_level_2_split_{name}_{part}.h5" for part in ("x", "y"))
            for split, name in NAME.items()
        },
        read,
    ),
)
TASKS = (ImageProbe("pcam_probe", DATA),)
