"""Agreement of predictions with labels beyond accuracy: F1, Matthews, Pearson and Spearman.

Each comes with the bootstrap's standard error and interval, over test sets drawn with replacement from this
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flava_ds.evaluation.protocols import Score, Unit
from flava_ds.evaluation.statistics import RESAMPLES, SEED, interval

Statistic = Callable[[np.ndarray, np.ndarray], float]


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the harmonic mean of precision and recall of class 1; 0 if it occurs on neither side: [N],
    [N]."""
    hits, said, there = np.sum((predicted == 1) & (labels == 1)), np.sum(predicted == 1), np.sum(labels == 1)
    return float(2 * hits / (said + there)) if said + there else 0.0


def accuracy_and_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of accuracy and F1, GLUE's number for MRPC and QQP: [N], [N]."""
    return float((np.mean(predicted == labels) + f1(predicted, labels)) / 2)


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of two classes, which is Pearson's on 0 and 1: [N], [N]."""
    return pearson(predicted, labels)


def pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the correlation; 0 if one side is constant, for which it is undefined: [N], [N]."""
    x, y = (np.asarray(side, dtype=np.float64) for side in (predicted, labels))
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / math.sqrt((x @ x) * (y @ y)))


def spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the correlation of ranks; equal values get their mean rank: [N], [N]."""
    from scipy.stats import rankdata

    return pearson(rankdata(predicted), rankdata(labels))


def pearson_and_spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of both, GLUE's number for STS-B: [N], [N]."""
    return (pearson(predicted, labels) + spearman(predicted, labels)) / 2


def scored(statistic: Statistic, predicted: np.ndarray, labels: np.ndarray, unit: Unit = "share") -> Score:
    """Returns a statistic with its bootstrap standard error and interval: [N], [N]."""
    draw = np.random.default_rng(SEED)
    found = [
        statistic(predicted[rows], labels[rows])
        for rows in (draw.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES))
    ]
    error = float(np.std(found, ddof=1)) if len(labels) > 1 else None
    value = statistic(predicted, labels)
    return Score(value, len(labels), error or None, unit, interval=interval(np.array(found)))
