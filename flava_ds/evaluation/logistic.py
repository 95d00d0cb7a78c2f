"""Logistic regression on frozen features, and the search for its penalty."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from flava_ds.errors import UserError
from flava_ds.evaluation.batched_logistic import Linear, fit_batched

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
MOST_OF_SCIKIT_LEARN = 20_000
"""Samples that scikit-learn is given, at most; larger sets are fitted for all penalties at one time."""


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


class Classifier(Protocol):
    """A fitted classifier."""

    def predict(self, features: Tensor) -> np.ndarray:
        """[N d] -> [N] classes."""

    def decision_function(self, features: Tensor) -> np.ndarray:
        """[N d] -> [N] log odds for two classes, [N C] logits otherwise."""


Solver = Callable[[Tensor, np.ndarray, Sequence[float]], Sequence[Classifier]]
"""(features [N d], labels [N], penalties) -> a classifier for each penalty."""


@dataclass(frozen=True)
class _OfScikitLearn:
    fitted: LogisticRegression

    def predict(self, features: Tensor) -> np.ndarray:
        return self.fitted.predict(_numpy(features))

    def decision_function(self, features: Tensor) -> np.ndarray:
        return self.fitted.decision_function(_numpy(features))


def one_by_one(features: Tensor, labels: np.ndarray, penalties: Sequence[float]) -> list[Classifier]:
    """Fits with scikit-learn."""
    return [_OfScikitLearn(fit_as_clip(_numpy(features), labels, penalty)) for penalty in penalties]


def all_at_once(features: Tensor, labels: np.ndarray, penalties: Sequence[float]) -> list[Linear]:
    """Fits the same problems in torch, on the features' device."""
    tolerance = TOLERANCE / len(labels)
    return fit_batched(features, labels, penalties, iterations=MOST_ITERATIONS, tolerance=tolerance)


def solver_for(features: Tensor) -> Solver:
    """Returns scikit-learn for small sets, and the batched fit for large ones and on a GPU."""
    return all_at_once if len(features) > MOST_OF_SCIKIT_LEARN or features.is_cuda else one_by_one


def choose_penalty(
    solver: Solver, train: tuple[Tensor, np.ndarray], validation: tuple[Tensor, np.ndarray]
) -> float:
    """Returns the penalty with the best validation accuracy; the largest of equally good ones.

    Tries seven from 1e-6 to 1e6, then halves the interval around the best, down to eight per decade. It does
    so around an end of the range, too, so the result may lie beyond it.

    Source: CLIP, section A.3.
    """
    accuracies: dict[float, float] = {}

    def best_of(decades: Iterable[float]) -> float:
        new = [decade for decade in decades if decade not in accuracies]
        fitted = solver(*train, [10.0**decade for decade in new])
        for decade, classifier in zip(new, fitted, strict=True):
            accuracies[decade] = float((classifier.predict(validation[0]) == validation[1]).mean())
        return max(decades, key=lambda decade: (accuracies[decade], decade))

    best = best_of(COARSE)
    step = (COARSE[1] - COARSE[0]) / 2
    while step >= FINEST:
        best = best_of((best - step, best, best + step))
        step /= 2
    return 10.0**best


def _numpy(features: Tensor) -> np.ndarray:
    return features.float().cpu().numpy()


def hold_out(labels: np.ndarray) -> np.ndarray:
    """Marks every fifth sample of each class, from a fixed seed; none of single-sample classes: [N] bool."""
    draw = np.random.default_rng(SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        held_out[rows[: math.ceil(len(rows) / HELD_OUT) if len(rows) > 1 else 0]] = True
    return held_out
