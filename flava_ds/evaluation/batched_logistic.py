"""Logistic regressions with several penalties at one time: a pass over the features serves all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flava_ds.evaluation.lbfgs import minimise

CHUNK_LOGITS = 2**25
"""Most logits that exist at one time; 128 MiB in fp32."""
CHUNK_ROWS = 65_536
"""Most rows of the features that are converted at one time."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A fitted classifier.

    Shapes:
        weights  [K d+1]  fp64, the bias last; one row for two classes: the log odds of the second
        classes  [C]      int64, what the rows stand for
    """

    weights: Tensor
    classes: np.ndarray
    iterations: int

    def decision_function(self, features: Tensor) -> np.ndarray:
        """Returns logits: [N C], or [N] log odds for two classes."""
        weights = self.weights.to(features.device, torch.float32)
        rows = [part.float() @ weights[:, :-1].T + weights[:, -1] for part in features.split(CHUNK_ROWS)]
        logits = torch.cat(rows)
        return (logits[:, 0] if len(self.classes) == 2 else logits).cpu().numpy()

    def predict(self, features: Tensor) -> np.ndarray:
        """Returns classes: [N]."""
        logits = self.decision_function(features)
        return self.classes[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)]


def fit_batched(
    features: Tensor,
    labels: np.ndarray,
    penalties: Sequence[float],
    *,
    iterations: int,
    tolerance: float,
    dtype: torch.dtype = torch.float32,
) -> list[Linear]:
    """Fits multinomial logistic regression with each penalty λ on the weights, the bias free.

    What is minimised is the mean cross-entropy + λ/2n |W|², as scikit-learn does; for two classes W is one
    row, so that λ means the same there. `tolerance` is on the gradient of that mean. Logits and products are
    computed in `dtype` and added up in fp64.

    Shapes:
        features  [N d]
        labels    [N]
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    problem = _Problem(features, torch.from_numpy(numbers), len(classes), penalties, dtype)
    start = torch.zeros(len(penalties), problem.size, dtype=torch.float64, device=features.device)
    points, taken = minimise(problem, start, iterations=iterations, tolerance=tolerance)
    shape = (problem.rows, features.shape[1] + 1)
    return [
        Linear(point.view(shape), classes, int(count)) for point, count in zip(points, taken, strict=True)
    ]


class _Problem:
    """The objective of all penalties."""

    def __init__(
        self, features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], dtype: torch.dtype
    ) -> None:
        self.features, self.labels, self.dtype = features, labels.to(features.device), dtype
        self.rows = 1 if classes == 2 else classes
        self.size = self.rows * (features.shape[1] + 1)
        self.penalties = torch.tensor(penalties, dtype=torch.float64, device=features.device)
        self.chunk = max(1, min(CHUNK_ROWS, CHUNK_LOGITS // (len(penalties) * self.rows)))

    def __call__(self, points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients: [k P], [k] -> [k], [k P]."""
        count, width = len(self.labels), self.features.shape[1]
        theta = points.view(len(points), self.rows, width + 1)
        weights, bias = theta[..., :-1], theta[..., -1]
        flat, offset = weights.reshape(-1, width).to(self.dtype), bias.reshape(-1).to(self.dtype)
        value = points.new_zeros(len(points))
        gradient = torch.zeros_like(theta)
        for features, labels in zip(
            self.features.split(self.chunk), self.labels.split(self.chunk), strict=True
        ):
            x = features.to(self.dtype)
            logits = (x @ flat.T + offset).unflatten(1, (len(points), self.rows))
            losses, error = self._loss(logits, labels)
            value += losses
            found = error.flatten(1)
            gradient[..., :-1] += (found.T @ x).view_as(weights)
            gradient[..., -1] += found.sum(0, dtype=torch.float64).view_as(bias)
        penalty = self.penalties[which] / count
        value = value / count + penalty / 2 * weights.square().sum((1, 2))
        gradient /= count
        gradient[..., :-1] += penalty[:, None, None] * weights
        return value, gradient.flatten(1)

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns summed cross-entropies and their gradient: [r k K], [r] -> [k] fp64, [r k K]."""
        if self.rows == 1:
            target = labels.to(logits.dtype)[:, None, None]
            losses = torch.nn.functional.softplus(logits) - target * logits
            return losses.sum((0, 2), dtype=torch.float64), logits.sigmoid() - target
        log_shares = logits.log_softmax(-1)
        where = labels[:, None, None].expand(-1, logits.shape[1], 1)
        losses = -log_shares.gather(2, where).sum((0, 2), dtype=torch.float64)
        return losses, log_shares.exp_().scatter_add_(2, where, -torch.ones_like(where, dtype=logits.dtype))
