"""CIFAR-10 and CIFAR-100 as published: pickles of Python 2, read without running what they might contain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flava_ds.errors import DataError
from flava_ds.evaluation.labelled import DEFAULT_TEMPLATES, LabelledImages
from flava_ds.evaluation.stored import Parts
from flava_ds.storage.pickled_arrays import load_arrays

EDGE = 32


@dataclass(frozen=True)
class Cifar:
    """60,000 images of 32 pixels in ten or a hundred classes."""

    name: str
    folder: str
    origin: str
    layout: str
    files: tuple[tuple[str, tuple[str, ...]], ...]
    """Each split's files; the first split is reported on."""
    meta: str
    names_field: str
    labels_field: str
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    licence: str = "none is stated; research use is customary"

    @property
    def splits(self) -> tuple[str, ...]:
        """The test split comes first."""
        return tuple(split for split, _ in self.files)

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the split's files."""
        names = dict(self.files).get(split or self.splits[0], ())
        return bool(names) and all((folder / name).is_file() for name in (*names, self.meta))

    def read(self, folder: Path, split: str) -> LabelledImages:
        """Reads a whole split: 150 MB for 'train'.

        Raises: DataError naming the file that is missing, damaged or has other contents.
        """
        meta = folder / self.meta
        names = [_text(name) for name in _field(load_pickle(meta), self.names_field, meta)]
        parts = {
            name: read_batch(folder / name, self.labels_field, len(names)) for name in dict(self.files)[split]
        }
        images = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts.values()]))
        images = images.view(-1, 3, EDGE, EDGE)
        keys = tuple(f"{name}/{row}" for name, (_, found) in parts.items() for row in range(len(found)))
        labels = np.concatenate([found for _, found in parts.values()])
        load = Parts(images.__getitem__, [folder / name for name in parts])
        return LabelledImages(self.name, keys, load, labels, tuple(names), self.templates)


def read_batch(file: Path, labels_field: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a file's pictures and labels: [N 3072] uint8, [N] int64. Raises: DataError."""
    batch = load_pickle(file)
    data, found = _field(batch, "data", file), np.asarray(_field(batch, labels_field, file), dtype=np.int64)
    if (
        not isinstance(data, np.ndarray)
        or data.shape != (len(found), 3 * EDGE * EDGE)
        or data.dtype != np.uint8
    ):
        raise DataError(
            f"{file}: 'data' is not [{len(found)} {3 * EDGE * EDGE}] uint8; download the set again"
        )
    if len(found) and not 0 <= found.min() <= found.max() < classes:
        raise DataError(f"{file}: has a label outside 0 to {classes - 1}; download the set again")
    return data, found


def load_pickle(file: Path) -> dict:
    """Reads a pickle of arrays. Raises: DataError."""
    try:
        with file.open("rb") as stream:
            found = load_arrays(stream)
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
