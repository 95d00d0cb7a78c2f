"""CIFAR-10 and CIFAR-100 as published: pickles of Python 2, read without running what they might contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import Listing, Variant, split_as_published
from flava_ds.evaluation.stored import Parts
from flava_ds.storage.pickled_arrays import load_arrays

EDGE = 32
LICENCE = "none is stated; research use is customary"


def split_in_pickles(
    files: Mapping[str, Sequence[str]], *, meta: str, names: str, labels: str
) -> tuple[Variant, ...]:
    """Returns the one way to split a set into pickles (split -> files). `meta` is the file with the classes,
    in its field `names`; `labels` is the field of every other file with its labels.
    """
    needed = {split: (*own, meta) for split, own in files.items()}
    return split_as_published(needed, partial(_read, files, meta, names, labels))


def _read(
    files: Mapping[str, Sequence[str]], meta: str, names: str, labels: str, folder: Path, split: str
) -> Listing:
    """Reads a whole split: 150 MB for 'train'.

    Raises: DataError naming the file that is missing, damaged or has other contents.
    """
    classes = [_text(name) for name in _field(load_pickle(folder / meta), names, folder / meta)]
    parts = {name: read_batch(folder / name, labels, len(classes)) for name in files[split]}
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts.values()]))
    load = Parts(images.view(-1, 3, EDGE, EDGE).__getitem__, [folder / name for name in parts])
    keys = tuple(f"{name}/{row}" for name, (_, found) in parts.items() for row in range(len(found)))
    return Listing(keys, load, np.concatenate([found for _, found in parts.values()]), tuple(classes))


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
