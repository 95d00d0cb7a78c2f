"""Scores from predictions, each with its number of samples and standard error."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flava_ds.evaluation.protocols import Score

CHUNK_ROWS = 1024


def share(hits: np.ndarray) -> Score:
    """Returns the mean of per-sample values in [0, 1], with its standard error: [N]."""
    hits = np.asarray(hits, dtype=np.float64)
    error = float(hits.std(ddof=1) / math.sqrt(len(hits))) if len(hits) > 1 else None
    return Score(float(hits.mean()), len(hits), error)


def mean_per_class(hits: np.ndarray, labels: np.ndarray) -> Score:
    """Returns the mean of the classes' accuracies: [N], [N]."""
    classes = [np.asarray(hits, dtype=np.float64)[labels == label] for label in np.unique(labels)]
    variances = [part.var(ddof=1) / len(part) for part in classes if len(part) > 1]
    error = math.sqrt(sum(variances)) / len(classes) if len(variances) == len(classes) else None
    return Score(float(np.mean([part.mean() for part in classes])), len(labels), error)


def roc_area(scores: np.ndarray, labels: np.ndarray) -> Score:
    """Returns the area under the ROC curve; ties count half: [N] float, [N] of 0 and 1.

    Source: the standard error is from Hanley and McNeil (1982).
    """
    from sklearn.metrics import roc_auc_score

    area = float(roc_auc_score(labels, scores))
    positive = int(labels.sum())
    negative = len(labels) - positive
    between, within = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (positive - 1) * (between - area**2) + (negative - 1) * (within - area**2)
    variance = (area * (1 - area) + spread) / (positive * negative)
    return Score(area, len(labels), math.sqrt(max(0.0, variance)))


def hits_at(queries: Tensor, keys: Tensor, right: list[np.ndarray], ks: tuple[int, ...]) -> np.ndarray:
    """Returns the probability that a correct key is among the first k, per query and k.

    Keys of equal score come in random order, so a model with constant embeddings scores chance.

    Shapes:
        queries  [q r]
        keys     [m r]
        right    q arrays of key numbers, none empty
        returns  [q len(ks)]  float64
    """
    found = np.zeros((len(queries), len(ks)))
    for start in range(0, len(queries), CHUNK_ROWS):
        scores = queries[start : start + CHUNK_ROWS] @ keys.T
        rows = right[start : start + CHUNK_ROWS]
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        query = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row) for row in rows]))
        places = query.to(scores.device), torch.from_numpy(np.concatenate(rows)).long().to(scores.device)
        is_right[places] = True
        best = scores.masked_fill(~is_right, -math.inf).amax(dim=1, keepdim=True)
        ties = scores == best
        counts = ((scores > best).sum(1), (ties & is_right).sum(1), (ties & ~is_right).sum(1))
        columns = zip(*(part.tolist() for part in counts), strict=True)
        for number, (above, right_ties, wrong_ties) in enumerate(columns):
            found[start + number] = [_hit_within(k - above, right_ties, wrong_ties) for k in ks]
    return found


def _hit_within(places: int, right: int, wrong: int) -> float:
    """Returns the probability that a correct key is among the first `places` shuffled keys."""
    if places <= 0:
        return 0.0
    return 1.0 - math.comb(wrong, places) / math.comb(right + wrong, places) if places <= wrong else 1.0
