"""Linear probe: logistic regression on the frozen CLS of the image encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from flava_ds.demo.evaluation.base import CHANCE
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.logistic import fit as fit_logistic
from flava_ds.evaluation.samples import Samples

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1)
"""Candidates for C on standardised features; the best on a left-out training style is used."""
MAX_ITERATIONS = 200
SWEEP_ITERATIONS = 60
TOLERANCE = 1e-4


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Predicts the group (9) and subgroup (97) of held-out images from frozen features; returns accuracy on
    each held-out style and unseen concepts, and the most frequent class's.

    Source: paper, section 4: scikit-learn's L-BFGS on the final layer's CLS, not projected, with the penalty
    swept on a split.
    """
    sets, metrics = inputs.held_out_sets(), {}
    for field in ("group", "subgroup"):
        for (set_name, samples), right in zip(
            sets.items(), hits(model, inputs, field, sets.values()), strict=True
        ):
            classes = samples.column(field)
            name = f"linear_probe/{set_name}/{field}_accuracy"
            metrics[name] = float(right.mean())
            metrics[name + CHANCE] = float(np.unique(classes, return_counts=True)[1].max() / len(classes))
    return metrics


def hits(model: FrozenModel, inputs: Inputs, field: str, sets: Iterable[Samples]) -> list[np.ndarray]:
    """Fits a probe for `field` on the training pairs; returns which samples of each set it gets right:
    [N] bool.
    """
    train = inputs.train
    predict = standardised(features_of(model, train), train.column(field), train.column("style"))
    return [predict(features_of(model, samples)) == samples.column(field) for samples in sets]


def features_of(model: FrozenModel, samples: Samples) -> np.ndarray:
    """Returns the image encoder's CLS: [N d] fp32."""
    return model.image_features(samples, "the demo's linear_probe").float().cpu().numpy()


def standardised(
    features: np.ndarray, labels: np.ndarray, styles: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a probe on standardised features, with the best penalty; returns what tells features' classes."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    features = (features - mean) / scale
    probe = fit(features, labels, choose_penalty(features, labels, styles), MAX_ITERATIONS)
    return lambda others: probe.predict((others - mean) / scale)


def fit(
    features: np.ndarray, labels: np.ndarray, inverse_penalty: float, iterations: int
) -> LogisticRegression:
    """Fits at scikit-learn's default tolerance: looser than the paper's, and fast enough for ten minutes."""
    return fit_logistic(features, labels, inverse_penalty, iterations=iterations, tolerance=TOLERANCE)


def choose_penalty(features: np.ndarray, labels: np.ndarray, styles: np.ndarray) -> float:
    """Returns the candidate that does best on the smallest training style when trained on the others.

    A style is left out rather than random rows, because the probe is tested on new styles. With one style,
    every fifth row is left out.
    """
    names, counts = np.unique(styles, return_counts=True)
    left_out = styles == names[counts.argmin()] if len(names) > 1 else np.arange(len(styles)) % 5 == 0
    kept = np.flatnonzero(~left_out)
    if len(np.unique(labels[kept])) < 2:
        return INVERSE_PENALTIES[len(INVERSE_PENALTIES) // 2]
    scores = [
        (
            fit(features[kept], labels[kept], c, SWEEP_ITERATIONS).predict(features[left_out])
            == labels[left_out]
        ).mean()
        for c in INVERSE_PENALTIES
    ]
    return INVERSE_PENALTIES[int(np.argmax(scores))]
