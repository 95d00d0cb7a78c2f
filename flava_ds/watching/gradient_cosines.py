"""Whether objectives pull an encoder the same way: cosines of their gradients. The update is not affected."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from flava_ds.training.watcher import Update
from flava_ds.watching.gradient_norms import GradientNorms


class GradientCosines(GradientNorms):
    """Measures the steps that GradientNorms would, on the parameters that both of two objectives reach.

    A measurement holds a gradient of every active objective at one time.
    """

    option: ClassVar[str] = "logging.objective_gradient_cosines_every"

    def measure(self, update: Update) -> dict[str, Tensor]:
        """Returns the cosine of every pair of objectives on every encoder that they share, by log field.

        An objective without any gradient there has none; a gradient of zero has the cosine 0.
        """
        found = {}
        for (first, ours), (second, theirs) in combinations(self.gradients(update), 2):
            for encoder in ours.keys() & theirs.keys():
                shared = sorted(ours[encoder].keys() & theirs[encoder].keys())
                if not shared:
                    continue
                left, right = (
                    torch.cat([own[encoder][place].flatten().float() for place in shared])
                    for own in (ours, theirs)
                )
                lengths = (left.norm() * right.norm()).clamp(min=torch.finfo(torch.float32).tiny)
                found[f"gradient_cosine/{first}/{second}/{encoder}"] = left @ right / lengths
        return found
