"""Regions of images that a detector found before, looked up by the image's name: in shards, or in the tables
in which bottom-up attention and LXMERT published theirs.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from flava_ds.data.regions import REGIONS_SUFFIX, SampleRegions, read_regions
from flava_ds.errors import DataError
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.files import LocalFile
from flava_ds.storage.index import load_indexes
from flava_ds.storage.shards import expand_shards

log = logging.getLogger(__name__)

COLUMNS: Mapping[int, tuple[str, ...]] = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
}
"""Columns of the published tables by their number: bottom-up attention's, and LXMERT's."""
_MOST = 65_536
Place = tuple[int, int, int]
"""Number of the file, offset and size."""


class StoredRegions:
    """The regions of many images, in a folder of shards or of tables (`*.tsv`).

    Shards hold what training reads: the whole image is the first region. A table's regions are taken as they
    are; with `whole` the whole image comes before them, with the mean of their features.
    """

    def __init__(self, folder: Path, *, feature_size: int, whole: bool) -> None:
        """Raises: DataError when the folder holds neither."""
        self.folder, self.feature_size, self.whole = folder, feature_size, whole
        tables = sorted(folder.glob("*.tsv"))
        self.tables = bool(tables)
        if not tables and not any(folder.glob("*.tar")):
            raise DataError(f"{folder}: holds neither shards of regions (*.tar) nor published tables (*.tsv)")
        self.files = [LocalFile(path) for path in tables or expand_shards(str(folder))]

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each image's regions are, by its name. Reads the tables once.

        Raises: DataError when shards have no regions, or a table has other columns.
        """
        found: dict[str, Place] = {}
        paths = [file.path for file in self.files]
        if self.tables:
            for number, path in enumerate(paths):
                log.info("%s: looking for its images", path)
                found |= {name: (number, *at) for name, at in _lines(path)}
            return found
        for number, index in enumerate(load_indexes(paths)):
            offsets, sizes = index.column((REGIONS_SUFFIX,))
            for name, offset, size in zip(index.names(), offsets.tolist(), sizes.tolist(), strict=True):
                if offset >= 0:
                    found[name.rpartition("/")[2]] = number, offset, size
        if not found:
            raise DataError(
                f"{self.folder}: its shards have no KEY.{REGIONS_SUFFIX}; write them with `flava-ds prepare "
                "regions`"
            )
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Hashes which files these are, by name and size."""
        names = [f"{file.path.name} {file.size}" for file in self.files]
        return hashlib.sha256("\n".join([*names, f"{self.whole}"]).encode()).hexdigest()[:16]

    def find(self, name: str) -> str | None:
        """Returns under which name there are regions of an image, or None. COCO's images may have their
        number alone.
        """
        number = name.rpartition("_")[2].lstrip("0")
        return next((own for own in (name, number) if own in self.places), None)

    def read(self, name: str) -> SampleRegions:
        """Reads the regions of an image. Raises: DataError naming the image and what is wrong."""
        known = self.find(name)
        if known is None:
            raise DataError(f"{self.folder}: has no regions of image '{name}'; run the detector on it, too")
        file, offset, size = self.places[known]
        data = self.files[file].pread(size, offset)
        try:
            if self.tables:
                return of_row(data, feature_size=self.feature_size, whole=self.whole)
            return read_regions(data, feature_size=self.feature_size, num_classes=0, most=_MOST)
        except (ValueError, SampleFault) as error:
            raise DataError(
                f"{self.files[file].path}: the regions of image '{known}' cannot be used: {error}"
            ) from error


def _lines(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the name of each row, and where it is. Raises: DataError for other columns."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = line.count(b"\t") + 1
            if fields not in COLUMNS:
                raise DataError(
                    f"{path}: line {number} has {fields} columns; expected {' or '.join(map(str, COLUMNS))}, "
                    "those of bottom-up attention or LXMERT"
                )
            yield line[: line.index(b"\t")].decode("utf-8", "replace"), (offset, len(line))
            offset += len(line)


def of_row(data: bytes, *, feature_size: int, whole: bool) -> SampleRegions:
    """Reads a row of a table: boxes are pixels, arrays are base64 of float32.

    Raises: ValueError that says what is wrong.
    """
    fields = data.rstrip(b"\r\n").split(b"\t")
    row = dict(zip(COLUMNS[len(fields)], fields, strict=True))
    sizes = {name[-1]: int(value) for name, value in row.items() if name.endswith(("_w", "_h"))}
    if min(sizes.values()) < 1:
        raise ValueError(f"its image has {sizes['w']} x {sizes['h']} pixels")
    count = int(row["num_boxes"])
    boxes = _floats(row["boxes"], count, 4, "boxes") / np.array([sizes["w"], sizes["h"]] * 2, dtype="<f4")
    features = _floats(row["features"], count, feature_size, "features")
    boxes = boxes.clip(0, 1)
    if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
        raise ValueError("boxes or features hold infinities or no numbers")
    if (boxes[:, :2] > boxes[:, 2:]).any():
        raise ValueError("a box ends before it begins; boxes are x1 y1 x2 y2, in pixels")
    if whole:
        boxes = np.concatenate([np.array([[0, 0, 1, 1]], dtype="<f4"), boxes])
        features = np.concatenate([features.mean(0, keepdims=True), features])
    return SampleRegions(features=features, boxes=boxes)


def _floats(data: bytes, rows: int, columns: int, name: str) -> np.ndarray:
    """Decodes base64 of float32: [rows columns]. Raises: ValueError for another size."""
    found = np.frombuffer(base64.b64decode(data, validate=True), dtype="<f4")
    if rows < 1 or found.size != rows * columns:
        raise ValueError(f"{found.size} numbers of {name}, but {rows} regions of {columns} were expected")
    return found.reshape(rows, columns)
