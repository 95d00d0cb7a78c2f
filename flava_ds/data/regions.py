"""The regions that a detector found in an image, as a sample's member holds them and a batch packs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flava_ds.config.plain_files import loads
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

_TYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_LENGTH_BYTES = 8
_TOLERANCE = 1e-3
"""By how much a row of fp16 probabilities may exceed 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRegions:
    """The regions of one image; the first is the whole image.

    Shapes:
        features  [o y]  float16 or float32
        boxes     [o 4]  float32, x1 y1 x2 y2 as shares of width and height
        classes   [o z]  float16 or float32, a detector's probabilities; None unless they are wanted
    """

    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray | None = None
    tags: str = ""
    """Words of the classes found, best first; empty if the member has none."""


@dataclass(frozen=True, kw_only=True)
class PackedRegions:
    """The regions of a batch's samples, laid end to end.

    Shapes:
        features  [O y]  float16 or float32
        boxes     [O 4]  float32
        classes   [O z]  float16 or float32, or None
        lengths   [b]    int64, regions of each sample
    """

    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray | None
    lengths: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[SampleRegions], *, classes: bool) -> PackedRegions:
        """Packs the regions of samples, with their classes if these are wanted."""
        return cls(
            features=np.concatenate([own.features for own in samples]),
            boxes=np.concatenate([own.boxes for own in samples]),
            classes=np.concatenate([own.classes for own in samples]) if classes else None,
            lengths=np.array([len(own.boxes) for own in samples], dtype=np.int64),
        )

    def at(self, rows: np.ndarray) -> PackedRegions:
        """Returns the regions of some samples: [m] sorted rows."""
        chosen = np.zeros(len(self.lengths), dtype=bool)
        chosen[rows] = True
        kept = np.repeat(chosen, self.lengths)
        return PackedRegions(
            features=self.features[kept],
            boxes=self.boxes[kept],
            classes=None if self.classes is None else self.classes[kept],
            lengths=self.lengths[rows],
        )

    @property
    def positions(self) -> np.ndarray:
        """The number of each region within its sample, 0 for the whole image: [O]."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.boxes)) - np.repeat(starts, self.lengths)


def read_regions(data: bytes, *, feature_size: int, num_classes: int, most: int) -> SampleRegions:
    """Reads a safetensors member with `features`, `boxes`, `classes` and the metadata `tags`.

    The header is checked against the size of the member, and nothing is unpickled. `num_classes` is 0 where
    the classes are not read.

    Raises: SampleFault 'bad regions' that says what is wrong.
    """
    tensors = _Tensors(data)
    boxes = tensors.take("boxes", 4)
    count = len(boxes)
    if not 0 < count <= most:
        raise _fault(f"{count} regions, but there must be at least one and at most max_regions {most}")
    features = tensors.take("features", feature_size, count)
    classes = tensors.take("classes", num_classes, count) if num_classes else None
    left, top, right, bottom = boxes.T
    if not ((0 <= left) & (left < right) & (right <= 1) & (0 <= top) & (top < bottom) & (bottom <= 1)).all():
        raise _fault("a box outside 0 <= x1 < x2 <= 1, 0 <= y1 < y2 <= 1")
    if tuple(boxes[0]) != (0, 0, 1, 1):
        raise _fault("the first region is not the whole image, 0 0 1 1")
    if classes is not None and ((classes < 0).any() or (_sums(classes) > 1 + _TOLERANCE).any()):
        raise _fault("rows of `classes` are no probabilities: negative, or more than 1 together")
    return SampleRegions(features=features, boxes=boxes.astype("<f4"), classes=classes, tags=tensors.tags)


class _Tensors:
    """A parsed safetensors member."""

    def __init__(self, data: bytes) -> None:
        """Raises: SampleFault when the header is not one of safetensors."""
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
            raise _fault(f"{len(data)} bytes are too few for a safetensors header")
        self.body = memoryview(data)[_LENGTH_BYTES + length :]
        try:
            found = loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        except ValueError as error:
            raise _fault(f"its header is not JSON: {error}") from error
        self.entries: dict[str, Any] = found if isinstance(found, dict) else {}
        metadata = self.entries.get("__metadata__")
        tags = metadata.get("tags", "") if isinstance(metadata, dict) else ""
        self.tags: str = tags if isinstance(tags, str) else ""

    def take(self, name: str, width: int, rows: int | None = None) -> np.ndarray:
        """Returns a matrix of finite numbers: [rows width]. Raises: SampleFault."""
        entry = self.entries.get(name)
        if not isinstance(entry, dict):
            raise _fault(f"no tensor '{name}'")
        kind, shape = _TYPES.get(str(entry.get("dtype"))), entry.get("shape")
        if kind is None:
            raise _fault(f"'{name}' has dtype {entry.get('dtype')!r:.20}; only F16 and F32 are read")
        if not _are_sizes(shape) or len(shape) != 2 or shape[1] != width or rows not in (None, shape[0]):
            wanted = "regions" if rows is None else rows
            raise _fault(f"'{name}' has shape {shape!r:.60}, expected [{wanted}, {width}]")
        ends = entry.get("data_offsets")
        size = math.prod(shape) * kind.itemsize
        if not _are_sizes(ends) or len(ends) != 2 or ends[1] - ends[0] != size or ends[1] > len(self.body):
            raise _fault(
                f"'{name}' of {size} bytes lies at {ends!r:.60} of {len(self.body)}, which does not fit"
            )
        values = np.frombuffer(self.body[ends[0] : ends[1]], dtype=kind).reshape(shape)
        if not np.isfinite(values).all():
            raise _fault(f"'{name}' holds infinities or no numbers")
        return values


def _are_sizes(value: Any) -> bool:
    """Returns whether a value of the header is a list of non-negative integers."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _sums(classes: np.ndarray) -> np.ndarray:
    return classes.sum(axis=1, dtype=np.float32)


def _fault(detail: str) -> SampleFault:
    return SampleFault(faults.BAD_REGIONS, detail)
