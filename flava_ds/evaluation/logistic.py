"""Logistic regression on frozen features, and the search for its penalty."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from flava_ds.errors import UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

MOST_ITERATIONS = 1000
TOLERANCE = 1e-4
"""On the gradient of the summed loss. scikit-learn 1.4 and later use the mean's, n times smaller."""
COARSE = tuple(range(-6, 7, 2))
"""Decades of the first penalties to try: seven from 1e-6 to 1e6."""
FINEST = 1 / 8
"""In decades: where the interval halving around the best penalty stops."""
HELD_OUT = 5
"""Every fifth sample of each class selects the penalty if a data set has no validation split."""
SEED = 0


def fit(
    features: np.ndarray, labels: np.ndarray, inverse_penalty: float, *, iterations: int, tolerance: float
) -> LogisticRegression:
    """Fits multinomial logistic regression by L-BFGS; reaching the iteration limit is not an error."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UserError("a probe needs scikit-learn; `pip install 'flava_ds[eval]'`") from error

    # One BLAS thread: the matrices are small, and threads that spin on busy cores are many times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=inverse_penalty, max_iter=iterations, tol=tolerance).fit(features, labels)


def fit_as_clip(features: np.ndarray, labels: np.ndarray, penalty: float) -> LogisticRegression:
    """Fits like the paper's probes: at most 1000 iterations, penalty λ = 1/C, raw features, free bias.

    Source: paper, section 4, which follows CLIP.
    """
    return fit(features, labels, 1 / penalty, iterations=MOST_ITERATIONS, tolerance=TOLERANCE / len(labels))


def choose_penalty(train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the penalty with the best validation accuracy; the largest of equally good ones.

    Tries seven from 1e-6 to 1e6, then halves the interval around the best, down to eight per decade.

    Source: CLIP, section A.3.
    """
    accuracies: dict[float, float] = {}

    def accuracy(decade: float) -> float:
        if decade not in accuracies:
            accuracies[decade] = float(
                (fit_as_clip(*train, 10.0**decade).predict(validation[0]) == validation[1]).mean()
            )
        return accuracies[decade]

    best = max(COARSE, key=lambda decade: (accuracy(decade), decade))
    step = (COARSE[1] - COARSE[0]) / 2
    while step >= FINEST:
        best = max((best - step, best, best + step), key=lambda decade: (accuracy(decade), decade))
        step /= 2
    return 10.0**best


def hold_out(labels: np.ndarray) -> np.ndarray:
    """Marks every fifth sample of each class, from a fixed seed; none of single-sample classes: [N] bool."""
    draw = np.random.default_rng(SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        held_out[rows[: math.ceil(len(rows) / HELD_OUT) if len(rows) > 1 else 0]] = True
    return held_out
