"""Whether objectives pull an encoder the same way: cosines of their gradients. The update is not affected."""

from __future__ import annotations

from itertools import combinations, product
from typing import ClassVar

import torch
from torch import Tensor

from flava_ds.training.engine import Engine
from flava_ds.training.norms import squared_norm
from flava_ds.training.watcher import Update
from flava_ds.watching.gradient_norms import GradientNorms
from flava_ds.watching.metrics import Metrics

Gradients = dict[str, dict[int, Tensor]]
"""Encoder -> place of a parameter in it -> gradient."""


class GradientCosines(GradientNorms):
    """Measures the steps that GradientNorms would, on the parameters that both of two objectives reach.

    Objectives of different sources, which never share a step, are compared across the steps of a window: of
    weights a few updates apart. A measurement holds a gradient of every active objective at one time, and a
    window one of every objective so far in the host's memory, if there is more than one kind of step.
    """

    option: ClassVar[str] = "logging.objective_gradient_cosines_every"

    def __init__(self, engine: Engine, every: int, metrics: Metrics, kinds: int) -> None:
        """`kinds` is the number of the run's kinds of steps."""
        super().__init__(engine, every, metrics)
        self._kinds = kinds
        self._earlier: dict[str, Gradients] = {}

    def due(self, step: int, kind: str) -> bool:
        """Returns True if `step`, of `kind`, is to be measured. A new window forgets older gradients."""
        if self.every and step // self.every != self._window:
            self._earlier = {}
        return super().due(step, kind)

    def measure(self, update: Update) -> dict[str, Tensor]:
        """Returns the cosine of every pair of objectives on every encoder that they share, by log field.

        An objective without any gradient there has none; a gradient of zero has the cosine 0.
        """
        now = dict(self.gradients(update))
        earlier = {name: own for name, own in self._earlier.items() if name not in now}
        # Of two sources, either may come first in a window, so their names are in alphabetical order.
        across = (sorted(pair, key=lambda own: own[0]) for pair in product(earlier.items(), now.items()))
        found = {}
        for (first, ours), (second, theirs) in (*combinations(now.items(), 2), *across):
            for encoder, cosine in cosines(ours, theirs).items():
                found[f"gradient_cosine/{first}/{second}/{encoder}"] = cosine
        if self._kinds > 1:
            self._earlier |= {
                name: {
                    encoder: {place: gradient.cpu() for place, gradient in own.items()}
                    for encoder, own in gradients.items()
                }
                for name, gradients in now.items()
            }
        return found


def cosines(ours: Gradients, theirs: Gradients) -> dict[str, Tensor]:
    """Returns the cosine of two gradients on every encoder of which both reach a parameter."""
    found = {}
    for encoder in ours.keys() & theirs.keys():
        shared = sorted(ours[encoder].keys() & theirs[encoder].keys())
        if not shared:
            continue
        device = theirs[encoder][shared[0]].device
        left, right = (
            torch.cat([own[encoder][place].to(device).flatten().float() for place in shared])
            for own in (ours, theirs)
        )
        lengths = squared_norm([left]).sqrt() * squared_norm([right]).sqrt()
        found[encoder] = (left * right).sum() / lengths.clamp(min=torch.finfo(torch.float32).tiny)
    return found
