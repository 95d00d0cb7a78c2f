"""CIFAR-10 as published: Python 2 pickles, read without executing anything in them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flava_ds.errors import DataError
from flava_ds.evaluation.labelled import LabelledImages

FILES = {"test": ("test_batch",), "train": tuple(f"data_batch_{number}" for number in range(1, 6))}
EDGE = 32
TEMPLATES = (
    *("a photo of a {}.", "a blurry photo of a {}.", "a black and white photo of a {}."),
    *("a low contrast photo of a {}.", "a high contrast photo of a {}.", "a bad photo of a {}."),
    *("a good photo of a {}.", "a photo of a small {}.", "a photo of a big {}."),
)
"""Half of CLIP's prompts for this set; the other half has 'the' for 'a'. Source: CLIP, data/prompts.md."""


@dataclass(frozen=True)
class Cifar10:
    """60,000 images of 32 x 32 pixels in ten classes."""

    name: str = "cifar10"
    licence: str = "none is stated; research use is customary"
    origin: str = (
        "by hand: cifar-10-python.tar.gz from the University of Toronto's CIFAR page (170 MB), unpacked"
    )
    folder: str = "cifar-10-batches-py"
    layout: str = "data_batch_1 to data_batch_5, test_batch and batches.meta"
    splits: tuple[str, ...] = ("test", "train")

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the split's files."""
        return all(
            (folder / file).is_file()
            for name in ([split] if split else self.splits[:1])
            for file in FILES[name]
        )

    def read(self, folder: Path, split: str) -> LabelledImages:
        """Reads a whole split: 150 MB for 'train'.

        Raises: DataError naming the file that is missing, damaged or has other contents.
        """
        names = [
            _text(name)
            for name in _field(load_pickle(folder / "batches.meta"), "label_names", folder / "batches.meta")
        ]
        pixels, labels, keys = [], [], []
        for file in FILES[split]:
            batch = load_pickle(folder / file)
            data, found = (
                _field(batch, "data", folder / file),
                np.asarray(_field(batch, "labels", folder / file), dtype=np.int64),
            )
            if (
                not isinstance(data, np.ndarray)
                or data.shape != (len(found), 3 * EDGE * EDGE)
                or data.dtype != np.uint8
            ):
                raise DataError(
                    f"{folder / file}: 'data' is not [{len(found)} {3 * EDGE * EDGE}] uint8; download "
                    "the set again"
                )
            if len(found) and not 0 <= found.min() <= found.max() < len(names):
                raise DataError(
                    f"{folder / file}: has a label outside 0 to {len(names) - 1}; download the set again"
                )
            pixels.append(data)
            labels.append(found)
            keys += [f"{file}/{number}" for number in range(len(found))]
        images = torch.from_numpy(np.concatenate(pixels)).view(-1, 3, EDGE, EDGE)
        return LabelledImages(
            self.name, tuple(keys), lambda row: images[row], np.concatenate(labels), tuple(names), TEMPLATES
        )


_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct
    if not hasattr(np, "_core")
    else np._core.multiarray._reconstruct,
}
"""Everything that the published pickles call; NumPy has moved some of it since they were written."""


class ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Finds a known class. Raises: pickle.UnpicklingError naming any other."""
        found = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return found


def load_pickle(file: Path) -> dict:
    """Reads a pickle of arrays. Raises: DataError."""
    try:
        with file.open("rb") as stream:
            found = ArraysOnly(stream, encoding="bytes").load()
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing; unpack the whole archive") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(
            f"{file}: not a pickle of arrays ({error}); do not use it, download the set again"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: holds {type(found).__name__} instead of a dict; download the set again")
    return found


def _field(batch: dict, name: str, file: Path) -> Any:
    """Returns a field; Python 2 wrote keys as bytes."""
    for key in (name.encode(), name):
        if key in batch:
            return batch[key]
    raise DataError(f"{file}: has no '{name}'; download the set again")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
