"""Held-out shards: captions and metadata in memory, encoded images read when they are asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.data.decode import decode_image
from flava_ds.data.transforms import center_pixels
from flava_ds.errors import DataError
from flava_ds.storage.faults import SampleFault, counted, lossy
from flava_ds.storage.members import IMAGE_SUFFIXES
from flava_ds.storage.sample_table import SampleTable
from flava_ds.storage.shard_reader import open_indexed
from flava_ds.storage.shards import expand_shards

log = logging.getLogger(__name__)

FIELDS = {"image": IMAGE_SUFFIXES, "text": ("txt",), "record": ("json",)}
DECODE_ROWS = 512
"""Images kept at their stored size at a time."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in shard order; images are decoded on demand, once per size."""

    name: str
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    records: tuple[dict, ...]
    encoded_images: Sequence[bytes]
    _pixels: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> np.ndarray:
        """Returns one field of every sample's metadata: [N] of str.

        Raises: DataError naming the first sample without it.
        """
        for key, record in zip(self.keys, self.records, strict=True):
            if name not in record:
                raise DataError(
                    f"{self.name}: sample '{key}' has no '{name}' in its .json, which the evaluation groups "
                    "by; build the data set again"
                )
        return np.array([str(record[name]) for record in self.records])

    def pixels(self, size: int) -> Tensor:
        """Returns the images, resized and centre-cropped to `size`: [N 3 size size] uint8.

        Raises: DataError naming an image that cannot be decoded.
        """
        if size not in self._pixels:
            parts = [torch.empty(0, 3, size, size, dtype=torch.uint8)]
            for start in range(0, len(self), DECODE_ROWS):
                rows = range(start, min(start + DECODE_ROWS, len(self)))
                parts.append(center_pixels([self._decode(row) for row in rows], size))
            self._pixels[size] = torch.cat(parts)
        return self._pixels[size]

    def batch(self, rows: range, size: int) -> Tensor:
        """Returns some images at `size`, as the model sees them: [k 3 size size] uint8."""
        return self.pixels(size)[rows.start : rows.stop]

    def select(self, rows: np.ndarray, name: str) -> Samples:
        """Returns the chosen samples as a new set, with the images decoded so far."""
        keys, captions, records = (
            tuple(values[row] for row in rows) for values in (self.keys, self.captions, self.records)
        )
        images = Chosen(self.encoded_images, rows)
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        decoded = {size: pixels[index] for size, pixels in self._pixels.items()}
        return Samples(name, keys, captions, records, images, decoded)

    def _decode(self, row: int) -> Tensor:
        try:
            return decode_image(self.encoded_images[row])
        except SampleFault as fault:
            raise DataError(
                f"{self.name}: the picture of sample '{self.keys[row]}' cannot be used: {fault}; build the "
                "data set again"
            ) from fault


@dataclass(frozen=True, eq=False)
class Members(Sequence[bytes]):
    """One member of every sample of a table of local shards, read when it is asked for, by any thread."""

    shards: Sequence[Path]
    table: SampleTable
    field: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: Any) -> Any:
        offsets, sizes = self.table.columns[self.field]
        offset, size, shard = int(offsets[row]), int(sizes[row]), self.table.shard_of(row)
        file = open_indexed(self.shards[shard], self.table.stamps[shard])
        try:
            return file.pread(size, offset)
        finally:
            file.close()


@dataclass(frozen=True, eq=False)
class Chosen(Sequence[bytes]):
    """Some rows of a sequence."""

    whole: Sequence[bytes]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        return self.whole[int(self.rows[row])]


def _first_lacking(shards: list[Path], wanted: Mapping[str, Sequence[str]]) -> str | None:
    """Names the first sample without one of its members; None if all are complete."""
    table = SampleTable(shards, wanted, {})
    for name, (offsets, _) in table.columns.items():
        if len(rows := np.flatnonzero(offsets < 0)):
            key, shard = table.key(int(rows[0])), table.shards[table.shard_of(int(rows[0]))]
            what = " or ".join(f".{suffix}" for suffix in wanted[name])
            return f"sample '{key}' in {shard} has no {what} ({len(rows)} of {len(table)} samples)"
    return None


def read_samples(folder: Path, *, images: bool = True, captions: bool = True) -> Samples:
    """Lists every sample of a folder of shards, optionally without images or captions.

    Raises: DataError if the folder is missing or a sample lacks an image, a caption or readable metadata.
    """
    without = {name for name, asked in (("image", images), ("text", captions)) if not asked}
    wanted = {name: suffixes for name, suffixes in FIELDS.items() if name not in without}
    shards = expand_shards(str(folder))
    table = SampleTable(shards, wanted, {name: f"no {name}" for name in wanted})
    lost = lossy(table.faults)
    if lost and (lacking := _first_lacking(shards, wanted)):
        raise DataError(f"{lacking}; evaluation counts every sample: complete it, or take it out")
    if lost or not len(table):
        raise DataError(
            f"{folder}: evaluation counts every sample, but found {counted(table.faults)} left out, and "
            f"{len(table)} samples; unpack or build the data set again"
        )
    if table.faults:
        log.warning("%s: left out of %d samples: %s", folder, len(table), counted(table.faults))
    keys = tuple(table.key(row) for row in range(len(table)))
    none = (b"",) * len(keys)
    try:
        texts = tuple(
            data.decode("utf-8").strip()
            for data in (_read_members(shards, table, "text") if captions else none)
        )
        records = tuple(json.loads(data) for data in _read_members(shards, table, "record"))
    except ValueError as error:
        raise DataError(
            f"{folder}: a caption is not UTF-8 or a .json is not JSON ({error}); build the data set again"
        ) from error
    bare = [key for key, record in zip(keys, records, strict=True) if not isinstance(record, dict)]
    if bare:
        raise DataError(f"{folder}: the .json of sample '{bare[0]}' is no object; build the data set again")
    return Samples(
        Path(folder).name, keys, texts, records, Members(shards, table, "image") if images else none
    )


def _read_members(shards: list[Path], table: SampleTable, name: str) -> Iterator[bytes]:
    """Yields one member of every sample of a table of these shards, shard by shard."""
    offsets, sizes = table.columns[name]
    for number, shard in enumerate(shards):
        descriptor = os.open(shard, os.O_RDONLY)
        try:
            for row in range(table.first[number], table.first[number + 1]):
                yield os.pread(descriptor, int(sizes[row]), int(offsets[row]))
        finally:
            os.close(descriptor)
