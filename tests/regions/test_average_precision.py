"""Average precision: a case by hand, and a brute force that follows the definition."""

import numpy as np
import pytest

from flava_ds.regions.average_precision import (
    Boxes,
    average_precisions,
    ious,
    mean_average_precision,
    without_classes,
)


def boxes(*rows) -> Boxes:
    """From (x1, y1, x2, y2, label, image, score)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return Boxes(table[:, :4], table[:, 4].astype(int), table[:, 5].astype(int), table[:, 6])


def test_a_case_by_hand():
    truths = boxes((0, 0, 2, 2, 7, 0, 1), (4, 4, 6, 6, 7, 0, 1), (0, 0, 2, 2, 7, 1, 1), (0, 0, 1, 1, 3, 1, 1))
    found = boxes(
        (0, 0, 2, 2, 7, 0, 0.9),  # hit
        (0, 0, 2, 2, 7, 0, 0.8),  # the same truth again: a miss
        (0, 0, 2, 1, 7, 1, 0.7),  # overlaps by exactly a half: a hit
        (4, 4, 6, 6, 7, 1, 0.6),  # in the other picture: a miss
        (4, 4, 6, 5.9, 9, 0, 0.5),  # of a class that is nowhere
    )
    # recall 1/3 at precision 1, 2/3 at 2/3, the last truth is never found; class 3 has no detection
    assert average_precisions(found, truths) == {3: 0.0, 7: pytest.approx(1 / 3 + 1 / 3 * 2 / 3)}
    assert mean_average_precision(found, truths) == pytest.approx(5 / 18)
    # without classes the fifth box is a hit: 1, 1/2, 2/3, 1/2, 3/5 at recalls 1/4, 1/4, 2/4, 2/4, 3/4
    assert mean_average_precision(without_classes(found), without_classes(truths)) == pytest.approx(
        1 / 4 * (1 + 2 / 3 + 3 / 5)
    )
    assert ious(np.array([[0, 0, 2, 2.0]]), np.array([[1, 1, 3, 3.0], [2, 2, 2, 2]])).tolist() == [[1 / 7, 0]]


def slow(found: Boxes, truths: Boxes, label: int) -> float:
    """The mean over truths of the best precision among all cuts whose recall counts that truth."""
    wanted = [n for n in range(len(truths.labels)) if truths.labels[n] == label]
    order = sorted((n for n in range(len(found.labels)) if found.labels[n] == label),
                   key=lambda n: -found.scores[n])  # fmt: skip

    def hits_of(cut: int) -> int:
        free, hits = set(wanted), 0
        for n in order[:cut]:
            own = [m for m in wanted if truths.images[m] == found.images[n]]
            overlap = {m: ious(found.boxes[n : n + 1], truths.boxes[m : m + 1])[0, 0] for m in own}
            best = max(own, key=overlap.get, default=None)
            if best in free and overlap[best] >= 0.5:
                free.remove(best)
                hits += 1
        return hits

    cuts = [(hits_of(cut), cut) for cut in range(1, len(order) + 1)]
    best = [max((h / c for h, c in cuts if h >= n), default=0.0) for n in range(1, len(wanted) + 1)]
    return sum(best) / len(wanted)


def test_it_is_what_the_definition_gives():
    random = np.random.default_rng(0)
    for _ in range(20):
        truths, found = (
            np.concatenate(
                [
                    corner := random.integers(0, 4, (count, 2)),
                    corner + random.integers(1, 4, (count, 2)),
                    random.integers(0, 2, (count, 2)),
                    random.permutation(count)[:, None],
                ],
                axis=1,
            )
            for count in (8, 20)
        )
        truths, found = boxes(*truths), boxes(*found)
        for label, value in average_precisions(found, truths).items():
            assert value == pytest.approx(slow(found, truths, label), abs=1e-12)
