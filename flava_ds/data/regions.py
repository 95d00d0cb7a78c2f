"""The regions that a detector found in an image, as a sample's member holds them and a batch packs them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard

import numpy as np

from flava_ds.config.plain_files import loads
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

REGIONS_SUFFIX = "regions.safetensors"
"""Suffix of the members that `flava-ds prepare regions` writes; SourceConfig.regions_key must name it."""
MAX_CHARACTERS = 10_000
"""Longer texts are truncated before tokenisation."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
_FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
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
class EndToEnd:
    """Arrays of a batch's samples, laid end to end, and the rows of each sample in them: [b] int64."""

    lengths: np.ndarray

    def at(self, rows: np.ndarray) -> Self:
        """Returns those of some samples: [m] sorted rows."""
        kept, own = packed_at(rows, self.lengths), vars(self).items()
        arrays = {name: array[kept] for name, array in own if name != "lengths" and array is not None}
        return replace(self, lengths=self.lengths[rows], **arrays)


@dataclass(frozen=True, kw_only=True)
class PackedRegions(EndToEnd):
    """The regions of a batch's samples.

    Shapes:
        features  [O y]  float16 or float32
        boxes     [O 4]  float32
        classes   [O z]  float16 or float32, or None
    """

    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray | None

    @classmethod
    def of(cls, samples: Sequence[SampleRegions], *, classes: bool) -> PackedRegions:
        """Packs the regions of samples, with their classes if these are wanted."""
        return cls(
            features=np.concatenate([own.features for own in samples]),
            boxes=np.concatenate([own.boxes for own in samples]),
            classes=np.concatenate([own.classes for own in samples]) if classes else None,
            lengths=np.array([len(own.boxes) for own in samples], dtype=np.int64),
        )

    @property
    def positions(self) -> np.ndarray:
        """The number of each region within its sample, 0 for the whole image: [O]."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.boxes)) - np.repeat(starts, self.lengths)


def packed_at(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns which of the items that lie end to end belong to some samples: [m], [b] -> [O] bool.

    `rows` are sorted, `lengths` are the items of each sample.
    """
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[rows] = True
    return np.repeat(chosen, lengths)


def read_regions(data: bytes, *, feature_size: int, num_classes: int, most: int) -> SampleRegions:
    """Reads a safetensors member with `features`, `boxes`, `classes` and the metadata `tags`.

    The header is checked against the size of the member, and nothing is unpickled. `num_classes` is 0 where
    the classes are not read.

    Raises: SampleFault 'bad regions' that says what is wrong.
    """
    tensors = MemberTensors(data, faults.BAD_REGIONS)
    boxes = tensors.boxes()
    count = len(boxes)
    if not count:
        raise tensors.fault("0 regions, but there must be at least one")
    if count > most:
        raise SampleFault(faults.TOO_MANY_REGIONS, f"{count}, more than max_regions {most}")
    features = tensors.take("features", count, feature_size)
    classes = tensors.take("classes", count, num_classes) if num_classes else None
    if tuple(boxes[0]) != (0, 0, 1, 1):
        raise tensors.fault("the first region is not the whole image, 0 0 1 1")
    if classes is not None and (
        (classes < 0).any() or (classes.sum(axis=1, dtype=np.float32) > 1 + _TOLERANCE).any()
    ):
        raise tensors.fault("rows of `classes` are no probabilities: negative, or more than 1 together")
    return SampleRegions(features=features, boxes=boxes, classes=classes, tags=tensors.tags)


class MemberTensors:
    """A parsed safetensors member, whose faults have a given reason."""

    def __init__(self, data: bytes, reason: str) -> None:
        """Raises: SampleFault when the header is not one of safetensors."""
        self.reason = reason
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
            raise self.fault(f"{len(data)} bytes are too few for a safetensors header")
        self.body = memoryview(data)[_LENGTH_BYTES + length :]
        try:
            found = loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        except ValueError as error:
            raise self.fault(f"its header is not JSON: {error}") from error
        self.entries: dict[str, Any] = found if isinstance(found, dict) else {}
        metadata = self.entries.get("__metadata__")
        tags = metadata.get("tags", "") if isinstance(metadata, dict) else ""
        self.tags: str = tags[:MAX_CHARACTERS] if isinstance(tags, str) else ""
        if SURROGATE.search(self.tags):
            raise self.fault("its tags hold half of a surrogate pair")

    def has(self, name: str) -> bool:
        """Returns whether there is such a tensor."""
        return name in self.entries

    def boxes(self, rows: int | None = None) -> np.ndarray:
        """Returns the tensor `boxes`, x1 y1 x2 y2 as shares of width and height: [rows 4] float32.

        Raises: SampleFault.
        """
        boxes = self.take("boxes", rows, 4)
        left, top, right, bottom = boxes.T
        good = (0 <= left) & (left < right) & (right <= 1) & (0 <= top) & (top < bottom) & (bottom <= 1)
        if not good.all():
            raise self.fault("a box outside 0 <= x1 < x2 <= 1, 0 <= y1 < y2 <= 1")
        return boxes.astype("<f4")

    def take(self, name: str, *wanted: int | None) -> np.ndarray:
        """Returns a tensor of finite numbers of the wanted shape, see `array`. Raises: SampleFault."""
        values = self.array(name, _FLOATS, wanted)
        if not np.isfinite(values).all():
            raise self.fault(f"'{name}' holds infinities or no numbers")
        return values

    def array(
        self, name: str, types: Mapping[str, np.dtype[Any]], wanted: Sequence[int | None]
    ) -> np.ndarray:
        """Returns a tensor of one of `types` and of the wanted shape, in which None is any size.

        Raises: SampleFault.
        """
        entry = self.entries.get(name)
        if not isinstance(entry, dict):
            raise self.fault(f"no tensor '{name}'")
        kind, shape = types.get(str(entry.get("dtype"))), entry.get("shape")
        if kind is None:
            only = " and ".join(types)
            raise self.fault(f"'{name}' has dtype {entry.get('dtype')!r:.20}; only {only} are read")
        if (
            not _are_sizes(shape)
            or len(shape) != len(wanted)
            or any(size not in (None, own) for own, size in zip(shape, wanted, strict=True))
        ):
            sizes = ", ".join("ROWS" if size is None else str(size) for size in wanted)
            raise self.fault(f"'{name}' has shape {shape!r:.60}, expected [{sizes}]")
        ends = entry.get("data_offsets")
        size = math.prod(shape) * kind.itemsize
        if not _are_sizes(ends) or len(ends) != 2 or ends[1] - ends[0] != size or ends[1] > len(self.body):
            raise self.fault(
                f"'{name}' of {size} bytes lies at {ends!r:.60} of {len(self.body)}, which does not fit"
            )
        return np.frombuffer(self.body[ends[0] : ends[1]], dtype=kind).reshape(shape)

    def fault(self, detail: str) -> SampleFault:
        """Returns a fault of the member."""
        return SampleFault(self.reason, detail)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Returns whether a value of the header is a list of non-negative integers."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
