"""Average precision of detections: the area under precision over recall, of each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_IOU = 0.5
"""Overlap from which on a detection counts as a hit; "AP50"."""


@dataclass(frozen=True)
class Boxes:
    """Boxes in several pictures, with one class each; detections have a score, too.

    Shapes:
        boxes   [k 4]  x1, y1, x2, y2
        labels  [k]    int64
        images  [k]    int64, number of the picture
        scores  [k]    float; of truths, anything
    """

    boxes: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    scores: np.ndarray

    def of(self, rows: np.ndarray) -> Boxes:
        """Returns the chosen rows."""
        return Boxes(self.boxes[rows], self.labels[rows], self.images[rows], self.scores[rows])


def ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersections over unions: [k 4], [m 4] -> [k m]; 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area, other = (np.prod(own[:, 2:] - own[:, :2], axis=1) for own in (boxes, others))
    union = area[:, None] + other[None, :] - both
    return np.divide(both, union, out=np.zeros_like(both, dtype=np.float64), where=union > 0)


def average_precisions(found: Boxes, truths: Boxes) -> dict[int, float]:
    """Returns the average precision of each class that the truths have.

    Detections take the truths of their picture and class in the order of their scores, each the one that it
    overlaps most; a truth that is taken makes the next one a miss. Precision is the best at this recall or a
    higher one. Source: PASCAL VOC 2010, development kit, section 3.4.
    """
    return {
        int(label): _average_precision(
            found.of(np.flatnonzero(found.labels == label)),
            truths.of(np.flatnonzero(truths.labels == label)),
        )
        for label in np.unique(truths.labels)
    }


def mean_average_precision(found: Boxes, truths: Boxes) -> float:
    """Returns the mean of the average precisions over the classes that the truths have."""
    return float(np.mean(list(average_precisions(found, truths).values())))


def without_classes(boxes: Boxes) -> Boxes:
    """Returns the boxes as if there were one class, to judge places alone."""
    return Boxes(boxes.boxes, np.zeros_like(boxes.labels), boxes.images, boxes.scores)


def _average_precision(found: Boxes, truths: Boxes) -> float:
    hits = _hits(found.of(np.argsort(-found.scores, kind="stable")), truths).cumsum()
    if not len(hits):
        return 0.0
    recall = hits / len(truths.labels)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _hits(found: Boxes, truths: Boxes) -> np.ndarray:
    """Says which detections, best first, are hits: [k] bool."""
    taken, hits = np.zeros(len(truths.labels), dtype=bool), np.zeros(len(found.labels), dtype=bool)
    there = {int(image): np.flatnonzero(truths.images == image) for image in np.unique(truths.images)}
    for row, (box, image) in enumerate(zip(found.boxes, found.images, strict=True)):
        rows = there.get(int(image))
        if rows is None:
            continue
        overlaps = ious(box[None], truths.boxes[rows])[0]
        best = rows[int(overlaps.argmax())]
        if overlaps.max() >= LEAST_IOU and not taken[best]:
            taken[best] = hits[row] = True
    return hits
