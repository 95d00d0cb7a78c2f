"""Scores from predictions, each with its number of samples and standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flava_ds.errors import DataError
from flava_ds.evaluation.protocols import Score

CHUNK_ROWS = 1024
RESAMPLES, SEED = 1000, 0
"""Of every bootstrap interval."""
Z = 1.959964
"""Standard deviations of a normal on either side that hold 95 %."""
ROUNDED_BITS = 8
"""Units in the last place of the largest score by which equal scores may differ."""
DRAWN_COUNTS = 2**22
"""Most counts of an area's resamples that exist at one time."""


def share(hits: np.ndarray, groups: np.ndarray | None = None) -> Score:
    """Returns the mean of per-sample values in [0, 1], with its standard error: [N].

    The bootstrap draws the samples of one group, such as the captions of one image, together. Values that are
    all equal have no deviation to draw from: the interval is then Wilson's, and the standard error unknown.
    """
    hits = np.asarray(hits, dtype=np.float64)
    error = float(hits.std(ddof=1) / math.sqrt(len(hits))) if np.ptp(hits) > 0 else None
    return Score(float(hits.mean()), len(hits), error, interval=_interval_of_mean(hits, groups))


def mean_of_batches(sums: Sequence[float], terms: Sequence[int]) -> Score:
    """Returns the mean over all terms; its error takes the batches, whose terms depend on each other, as the
    independent draws, and is the usual one of a ratio.
    """
    s, n = np.asarray(sums, dtype=np.float64), np.asarray(terms, dtype=np.float64)
    mean, count = s.sum() / n.sum(), len(s)
    error = math.sqrt(count / (count - 1) * ((s - mean * n) ** 2).sum()) / n.sum() if count > 1 else None
    return Score(float(mean), int(n.sum()), error)


def share_over_folds(hits: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> Score:
    """Returns the mean over folds of each fold's accuracy; `rows` says which samples a fold's hits are of.

    A sample that several folds test counts once in `n`, and with all of its hits in the error, which takes
    them from their fold's mean: how many folds test a sample is no chance.
    """
    tested = np.unique(np.concatenate(rows))
    mean, deviations = float(np.mean([fold.mean() for fold in hits])), np.zeros(len(tested))
    for fold, of in zip(hits, rows, strict=True):
        weight = len(tested) / (len(hits) * len(of))
        deviations[np.searchsorted(tested, of)] += (fold - fold.mean()) * weight
    if not deviations.any():
        return Score(mean, len(tested), None, interval=wilson(mean, len(tested)))
    found = share(deviations)
    low, high = found.interval or (-1.0, 1.0)  # of a mean of 0
    ends = max(0.0, mean + low), min(1.0, mean + high)
    return Score(mean, len(tested), found.standard_error, interval=ends)


def mean_per_class(hits: np.ndarray, labels: np.ndarray) -> Score:
    """Returns the mean of the classes' accuracies: [N], [N].

    The interval is made of Wilson's of each class. A bootstrap would find no width in a class that is all
    right or all wrong, as most small classes are.
    """
    classes = [np.asarray(hits, dtype=np.float64)[labels == label] for label in np.unique(labels)]
    variances = [part.var(ddof=1) / len(part) for part in classes if len(part) > 1]
    error = math.sqrt(sum(variances)) / len(classes) if len(variances) == len(classes) else None
    means = [float(part.mean()) for part in classes]
    between = mean_interval(means, [wilson(m, len(c)) for m, c in zip(means, classes, strict=True)])
    return Score(float(np.mean(means)), len(labels), error or None, interval=between)


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of the mean of `count` values in [0, 1].

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    centre, share = mean + Z**2 / (2 * count), 1 + Z**2 / count
    width = Z * math.sqrt(mean * (1 - mean) / count + (Z / (2 * count)) ** 2)
    return max(0.0, (centre - width) / share), min(1.0, (centre + width) / share)


def mean_interval(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the interval of the mean of independent numbers: the distances to the ends of their intervals
    are combined like standard errors.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008).
    """
    low, high = (
        math.hypot(*(value - ends[side] for value, ends in zip(values, intervals, strict=True)))
        for side in (0, 1)
    )
    middle = sum(values) / len(values)
    return middle - low / len(values), middle + high / len(values)


def _interval_of_mean(values: np.ndarray, groups: np.ndarray | None) -> tuple[float, float] | None:
    """Returns between what the means of resampled groups lie."""
    if np.ptp(values) == 0:
        return wilson(float(values[0]), len(values if groups is None else np.unique(groups)))
    if groups is None:
        return interval(_drawn_means(values[:, None], np.random.default_rng(SEED)))
    _, number = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(number, values), np.bincount(number)], axis=1)
    drawn = _drawn_means(sums, np.random.default_rng(SEED))
    return interval(drawn[:, 0] / drawn[:, 1])


def _drawn_means(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns the means of bootstrap resamples: [N k] -> [RESAMPLES k], [RESAMPLES] for k = 1.

    How often each distinct row is drawn is multinomial, so what is drawn is as many numbers as there are
    distinct rows: two for hits and misses.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = draw.multinomial(len(rows), counts / len(rows), size=RESAMPLES) @ distinct / len(rows)
    return drawn[:, 0] if rows.shape[1] == 1 else drawn


def interval(drawn: np.ndarray) -> tuple[float, float] | None:
    """Returns between which values 95 % of the bootstrap's draws lie: [RESAMPLES]. None where that has no
    width: draws that are all alike say nothing of how far another set of samples would be.
    """
    low, high = np.percentile(drawn, [2.5, 97.5])
    return (float(low), float(high)) if low < high else None


def roc_area(scores: np.ndarray, labels: np.ndarray) -> Score:
    """Returns the area under the ROC curve; ties count half: [N] float, [N] of 0 and 1.

    Source: the standard error is from Hanley and McNeil (1982).
    Raises: DataError for samples of one class.
    """
    from sklearn.metrics import roc_auc_score

    if np.ptp(labels) == 0:
        raise DataError(f"the {len(labels)} samples reported on are all of one class; take more of them")

    area = float(roc_auc_score(labels, scores))
    positive = int(labels.sum())
    negative = len(labels) - positive
    between, within = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (positive - 1) * (between - area**2) + (negative - 1) * (within - area**2)
    variance = (area * (1 - area) + spread) / (positive * negative)
    error = math.sqrt(max(0.0, variance))
    return Score(area, len(labels), error or None, interval=_interval_of_area(scores, labels))


def _interval_of_area(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float] | None:
    """Returns between what the areas of resamples with the same numbers of both classes lie; None where the
    classes do not overlap at all, so that no resample's do.
    """
    _, place = np.unique(scores, return_inverse=True)
    draw, areas, places = np.random.default_rng(SEED), [], int(place.max()) + 1
    right, wrong = (np.bincount(place[labels == label], minlength=places) for label in (1, 0))
    for start in range(0, RESAMPLES, step := max(1, DRAWN_COUNTS // places)):
        size = min(step, RESAMPLES - start)
        above, below = (draw.multinomial(h.sum(), h / h.sum(), size=size) for h in (right, wrong))
        areas.append((above * (np.cumsum(below, axis=1) - below / 2)).sum(1) / (right.sum() * wrong.sum()))
    return interval(np.concatenate(areas))


def hits_at(queries: Tensor, keys: Tensor, right: list[np.ndarray], ks: tuple[int, ...]) -> np.ndarray:
    """Returns the probability that a correct key is among the first k, per query and k.

    Keys of equal score come in random order, so a model with constant embeddings scores chance.

    Shapes:
        queries  [q r]  fp32 or fp64
        keys     [m r]
        right    q arrays of key numbers, none empty
        returns  [q len(ks)]  float64
    Raises: DataError for scores that are not finite.
    """
    found = np.zeros((len(queries), len(ks)))
    for start in range(0, len(queries), CHUNK_ROWS):
        scores = queries[start : start + CHUNK_ROWS] @ keys.T
        rows = right[start : start + CHUNK_ROWS]
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        query = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row) for row in rows]))
        places = query.to(scores.device), torch.from_numpy(np.concatenate(rows)).long().to(scores.device)
        is_right[places] = True
        columns = zip(*(part.tolist() for part in around_best(scores, is_right)), strict=True)
        for number, (above, right_ties, wrong_ties) in enumerate(columns):
            found[start + number] = [_hit_within(k - above, right_ties, wrong_ties) for k in ks]
    return found


def around_best(scores: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns for each query how many keys score above its best right one, and how many right and wrong ones
    as much as it, up to rounding.

    Shapes:
        scores    [q m]  fp32 or fp64
        is_right  [q m]  bool
        returns   [q] each
    Raises: DataError for scores that are not finite.
    """
    if not scores.isfinite().all():
        raise DataError("scores of the model are not finite; use --precision fp32, or check the weights")
    best = scores.masked_fill(~is_right, -math.inf).amax(dim=1, keepdim=True)
    slack = ROUNDED_BITS * torch.finfo(scores.dtype).eps * scores.abs().amax(dim=1, keepdim=True)
    ties = (scores - best).abs() <= slack
    return (scores > best + slack).sum(1), (ties & is_right).sum(1), (ties & ~is_right).sum(1)


def _hit_within(places: int, right: int, wrong: int) -> float:
    """Returns the probability that a correct key is among the first `places` shuffled keys."""
    if places <= 0:
        return 0.0
    return 1.0 - math.comb(wrong, places) / math.comb(right + wrong, places) if places <= wrong else 1.0
