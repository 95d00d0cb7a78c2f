"""L-BFGS for several problems at one time, each with its own history, step and end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(points [k P], which problems they belong to [k]) -> values [k], gradients [k P]; all fp64."""
HISTORY = 10
"""Pairs of steps and changes of the gradient that a direction is made from; scipy's default."""
ENOUGH_DECREASE, ENOUGH_CURVATURE = 1e-4, 0.9
"""Of the Wolfe conditions."""
MOST_TRIALS = 20
"""Of one line search."""
SMALLEST_DECREASE = 64 * torch.finfo(torch.float64).eps
"""Relative; a problem that gains less in a step has ended. scikit-learn's value."""


def minimise(
    objective: Objective, start: Tensor, *, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Returns each problem's best point and how many iterations it took.

    A problem ends where no element of its gradient is larger than `tolerance`, where a step gains nothing, or
    after `iterations`. One that has ended is evaluated no more.

    Shapes:
        start    [m P]  fp64
        returns  [m P]  fp64, [m] int64

    Source: Nocedal and Wright, "Numerical Optimization", algorithms 7.4 and 7.5; the line search brackets and
    halves until the weak Wolfe conditions hold (Lewis and Overton 2013).
    """
    point = start.clone()
    value, gradient = objective(point, torch.arange(len(point), device=point.device))
    memory = _Memory(point)
    taken = torch.zeros(len(point), dtype=torch.long, device=point.device)
    alive = gradient.abs().amax(1) > tolerance
    for _ in range(iterations):
        rows = alive.nonzero()[:, 0]
        if not len(rows):
            break
        direction, fresh = memory.direction(gradient[rows], rows)
        first = torch.where(fresh, (1 / gradient[rows].abs().sum(1)).clamp(max=1.0), 1.0)
        found = _search(objective, point[rows], direction, value[rows], gradient[rows], first, rows)
        length, new_value, new_gradient = found
        moved = length > 0
        memory.add(rows, length[:, None] * direction, new_gradient - gradient[rows])
        gain = value[rows] - new_value
        scale = torch.stack([value[rows].abs(), new_value.abs(), torch.ones_like(gain)]).amax(0)
        # A direction that leads nowhere is dropped with its history; one without a history was the last.
        memory.forget(rows[~moved])
        ended = torch.where(moved, gain <= SMALLEST_DECREASE * scale, fresh)
        point[rows] += length[:, None] * direction
        value[rows], gradient[rows] = new_value, new_gradient
        taken[rows] += 1
        alive[rows] = ~ended & (new_gradient.abs().amax(1) > tolerance)
    return point, taken


class _Memory:
    """The last steps and changes of the gradient of every problem; a pair of no use has the weight 0."""

    def __init__(self, point: Tensor) -> None:
        self.steps = point.new_zeros(HISTORY, *point.shape)
        self.changes = torch.zeros_like(self.steps)
        self.weights = point.new_zeros(HISTORY, len(point))
        """1 / (step . change)."""
        self.newest = -1

    def add(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Keeps a pair for each of some problems, if the gradient grew along the step."""
        self.newest = (self.newest + 1) % HISTORY
        product = (step * change).sum(1)
        useful = product > torch.finfo(step.dtype).eps * (change * change).sum(1)
        self.weights[self.newest] = 0
        self.weights[self.newest, rows] = torch.where(useful, 1 / product, 0.0)
        self.steps[self.newest, rows], self.changes[self.newest, rows] = step, change

    def forget(self, rows: Tensor) -> None:
        """Drops all pairs of some problems."""
        self.weights[:, rows] = 0

    def direction(self, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where to go, and which problems have no history: [k P], [k] bool."""
        order = [(self.newest - back) % HISTORY for back in range(HISTORY)]
        weights = self.weights[:, rows]
        fresh = (weights == 0).all(0)
        wanted, alphas = gradient.clone(), {}
        scale = torch.ones_like(wanted[:, 0])
        for slot in order:
            if not weights[slot].any():
                continue
            step, change = self.steps[slot, rows], self.changes[slot, rows]
            alphas[slot] = weights[slot] * (step * wanted).sum(1)
            wanted -= alphas[slot][:, None] * change
            unscaled = (scale == 1.0) & (weights[slot] > 0)
            curvature = 1 / (weights[slot] * (change * change).sum(1))
            scale = torch.where(unscaled, curvature, scale)
        wanted *= scale[:, None]
        for slot in reversed(list(alphas)):
            step, change = self.steps[slot, rows], self.changes[slot, rows]
            beta = weights[slot] * (change * wanted).sum(1)
            wanted += (alphas[slot] - beta)[:, None] * step
        downhill = (wanted * gradient).sum(1) > 0
        self.forget(rows[~downhill])
        return torch.where(downhill[:, None], -wanted, -gradient), fresh | ~downhill


def _search(
    objective: Objective,
    point: Tensor,
    direction: Tensor,
    value: Tensor,
    gradient: Tensor,
    length: Tensor,
    rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns for each problem the step's length, and value and gradient there; 0 where none is better."""
    slope = (direction * gradient).sum(1)
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    best_value, best_gradient = value.clone(), gradient.clone()
    pending = torch.arange(len(length), device=length.device)
    for _ in range(MOST_TRIALS):
        t = length[pending]
        tried, tried_gradient = objective(point[pending] + t[:, None] * direction[pending], rows[pending])
        too_long = ~(tried <= value[pending] + ENOUGH_DECREASE * t * slope[pending])
        too_short = (tried_gradient * direction[pending]).sum(1) < ENOUGH_CURVATURE * slope[pending]
        better = pending[~too_long]
        low[better] = t[~too_long]
        best_value[better], best_gradient[better] = tried[~too_long], tried_gradient[~too_long]
        high[pending[too_long]] = t[too_long]
        pending = pending[too_long | too_short]
        if not len(pending):
            break
        middle = (low[pending] + high[pending]) / 2
        length[pending] = torch.where(high[pending].isfinite(), middle, 2 * length[pending])
    return low, best_value, best_gradient
