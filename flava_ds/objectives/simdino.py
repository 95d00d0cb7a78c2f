"""DINO without prototypes (SimDINO): a student's normalised features follow the teacher's, and the coding
rate keeps those of different images apart, in place of centre, sharpening and temperatures.

Source: Wu et al. 2025, "Simplifying DINO via Coding Rate Regularization", with the factors of its code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Above, AtLeast, AtMost
from flava_ds.objectives.base import Features, Loss, world_size
from flava_ds.objectives.dino_head import DinoHead
from flava_ds.objectives.dino_states import DinoTeacher
from flava_ds.objectives.multi_crop import MultiCropConfig, Seen, Spread
from flava_ds.objectives.spreading import coding_rate
from flava_ds.objectives.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class SimdinoConfig(MultiCropConfig, type="simdino"):
    """SimDINO on images, with DINO's crops and teacher."""

    rate_weight: Annotated[float, AtLeast(0), AtMost(10**6)] = 1.0
    """Weight of the coding rate, times (d + g) / (d g) for g images of a step and features of width d."""
    epsilon: Annotated[float, Above(0), AtMost(100)] = 0.5
    """Precision of the code whose rate it is: smaller asks for more directions."""

    title: ClassVar[str] = "SimDINO"

    @property
    def may_be_negative(self) -> bool:
        return True

    def build(self, config: Any) -> Simdino:
        return Simdino(self, config.model.shape_of("image"), config.training.total_steps)


class Simdino(Spread):
    """One minus the mean cosine, over every pair of a large crop that the teacher sees and another crop that
    the student sees, minus the mean coding rate of the student's large crops.
    """

    metrics: ClassVar[Mapping[str, str]] = {"cosine": "cosine", "rate": "coding_rate"}

    def __init__(self, config: SimdinoConfig, shape: Any, total_steps: int) -> None:
        super().__init__(config, shape, total_steps)
        self.config = config
        self.head = DinoHead(shape.hidden_size, config.head_hidden_size, config.bottleneck_size, None)

    def states(self, model: Any) -> dict[str, TrainingState]:
        networks = copy.deepcopy(model.image_encoder), copy.deepcopy(self.head)

        def targets(batches: Sequence[Batch], outputs: str) -> list[Tensor]:
            return [batch[outputs] for batch in batches]

        return {"teacher": DinoTeacher(*networks, self.momentum, targets)}

    def student(self, model: Any, batch: Batch, *, small: bool = True) -> Seen:
        """Returns the head's features of the crops, which the loss and its term read."""
        seen = super().student(model, batch, small=small)
        return seen._replace(
            large=self.outputs(seen.large), small=None if seen.small is None else self.outputs(seen.small)
        )

    def matched(self, seen: Seen, batch: Batch) -> Loss:
        targets = batch["dino_targets"]
        total, pairs = (targets * seen.large.flip(1)).sum(), targets.shape[1]
        if seen.small is not None:
            total = total + (targets.sum(1) * seen.small.sum(1)).sum()
            pairs += targets.shape[1] * seen.small.shape[1]
        cosine = total / pairs
        return Loss(batch.size - cosine, self.count(batch), {"cosine": cosine.detach()})

    def outputs(self, tokens: Tensor) -> Tensor:
        """Returns the head's L2-normalised features: [b a d] -> [b a r]."""
        return self.head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        views = [features.samples[name] for name in ("first", "second")]
        rate = torch.stack([coding_rate(view, self.config.epsilon) for view in views]).mean()
        size, width = views[0].shape
        images = size * world_size()
        factor = self.config.rate_weight * (width + images) / (width * images)
        return -factor * size * rate, {"rate": size * rate.detach()}

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes in fp32: both views' features and their gradients."""
        return (4 * global_batch * self.config.bottleneck_size,) * 4
