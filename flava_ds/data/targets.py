"""The labels of a sample that people gave it, as a member holds them and a batch packs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flava_ds.data.regions import EndToEnd, MemberTensors
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

if TYPE_CHECKING:
    from flava_ds.data.plan import TargetsPlan

TARGETS_SUFFIX = "targets.safetensors"
"""Suffix of the members with labels; SourceConfig.targets_key names it."""
_INTEGERS = {"I64": np.dtype("<i8")}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTargets:
    """The labels of one sample: of the objects in its image, the answers to its question, or one class.

    Shapes:
        labels  [o]    int64
        boxes   [o 4]  float32, x1 y1 x2 y2 as shares of width and height; None unless they are wanted
        scores  [o]    float32 in [0, 1], how right each label is
        attributes  [o a]  int64, -1 in columns without one; None unless they are wanted
    """

    labels: np.ndarray
    boxes: np.ndarray | None
    scores: np.ndarray
    attributes: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class PackedTargets(EndToEnd):
    """The labels of a batch's samples.

    Shapes:
        labels   [O]    int64
        boxes    [O 4]  float32, or None
        scores   [O]    float32
        attributes  [O a]  int64, or None
    """

    labels: np.ndarray
    boxes: np.ndarray | None
    scores: np.ndarray
    attributes: np.ndarray | None = None

    @classmethod
    def of(cls, samples: Sequence[SampleTargets]) -> PackedTargets:
        """Packs the labels of samples."""
        boxes = [own.boxes for own in samples if own.boxes is not None]
        attributes = [own.attributes for own in samples if own.attributes is not None]
        return cls(
            labels=np.concatenate([own.labels for own in samples]),
            boxes=np.concatenate(boxes) if boxes else None,
            scores=np.concatenate([own.scores for own in samples]),
            lengths=np.array([len(own.labels) for own in samples], dtype=np.int64),
            attributes=np.concatenate(attributes) if attributes else None,
        )


def read_targets(data: bytes, wanted: TargetsPlan) -> SampleTargets:
    """Reads a safetensors member with `labels`, with `boxes` and `attributes` if they are wanted, and perhaps
    `scores`.

    Without `scores` every label is right. A sample whose boxes are wanted may have no labels, others have at
    least one. Nothing is unpickled.

    Raises: SampleFault 'bad targets' that says what is wrong.
    """
    tensors = MemberTensors(data, faults.BAD_TARGETS)
    labels = tensors.array("labels", _INTEGERS, (None,))
    count, boxes, most, num_classes = len(labels), wanted.boxes, wanted.most, wanted.num_classes
    if count > most:
        raise SampleFault(faults.TOO_MANY_TARGETS, f"{count}, more than max_targets {most}")
    if count < 1 - boxes:
        raise tensors.fault("0 labels, but there must be at least one")
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        raise tensors.fault(
            f"labels {labels.min()} .. {labels.max()}, but the objective's num_classes is {num_classes}"
        )
    if not boxes and len(np.unique(labels)) < count:
        raise tensors.fault("a label that is listed twice, perhaps with two scores")
    scores = tensors.take("scores", count) if tensors.has("scores") else np.ones(count, dtype="<f4")
    if ((scores < 0) | (scores > 1)).any():
        raise tensors.fault("a score outside 0 .. 1")
    return SampleTargets(
        labels=labels.astype(np.int64),
        boxes=tensors.boxes(count) if boxes else None,
        scores=scores.astype(np.float32),
        attributes=_attributes(tensors, count, wanted) if wanted.num_attributes else None,
    )


def _attributes(tensors: MemberTensors, count: int, wanted: TargetsPlan) -> np.ndarray:
    """Returns the tensor `attributes` in the width of all batches: [o a] int64. Raises: SampleFault."""
    classes, most = wanted.num_attributes, wanted.most_attributes
    found = tensors.array("attributes", _INTEGERS, (count, None))
    if found.shape[1] > most:
        raise tensors.fault(f"{found.shape[1]} columns of attributes, more than max_attributes {most}")
    if found.size and not -1 <= found.min() <= found.max() < classes:
        raise tensors.fault(
            f"attributes {found.min()} .. {found.max()}, but the objective's num_attributes is {classes} "
            "(-1 stands for none)"
        )
    padded = np.full((count, most), -1, dtype=np.int64)
    padded[:, : found.shape[1]] = found
    return padded
