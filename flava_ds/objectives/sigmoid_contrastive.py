"""Sigmoid contrastive loss: every image with every text of the step is one question, do they belong together.

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (SigLIP), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from flava_kernels.sigmoid_loss import sigmoid_loss
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Features
from flava_ds.objectives.global_contrastive import Contrastive, ContrastiveConfig


@dataclass(frozen=True, kw_only=True)
class SigmoidContrastiveConfig(ContrastiveConfig, type="sigmoid_contrastive"):
    """Image-text loss of SigLIP over the batch of all ranks: a sigmoid for each image with each text.

    The published scale begins at 10, `model.logit_scale_init` 2.3026, and is not clamped; open_clip clamps it
    as the default does.
    """

    logit_bias_init: Annotated[float, AtLeast(-100), AtMost(100)] = -10.0
    """What is added to every logit at the start; it is learned. As published, it makes up for the many pairs
    that do not match."""

    title: ClassVar[str] = "Sigmoid contrastive"

    def build(self, config: Any) -> SigmoidContrastive:
        """Builds the objective with its bias. Projections and scale belong to the model."""
        return SigmoidContrastive(self)


class SigmoidContrastive(Contrastive):
    """Binary cross-entropy of the matched samples' texts with all images of a step, per such text.

    The text of a mismatched sample is in the batch twice and takes no part: as a negative it would push away
    the image that it belongs to.
    """

    metrics: ClassVar[Mapping[str, str]] = {**Contrastive.metrics, "bias": "logit_bias"}

    def __init__(self, config: SigmoidContrastiveConfig) -> None:
        super().__init__(config)
        self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias_init]))

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        """Adds `logit_bias` [1] to what the global loss reads."""
        found = super().features(model, hidden, batch)
        shared = {**found.shared, "logit_bias": at_least_fp32(self.logit_bias)}
        return Features(found.samples, shared, found.constants)

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = features.samples["image"], features.samples["text"]
        scale, bias = features.shared["log_scale"], features.shared["logit_bias"]
        loss, correct = sigmoid_loss(image, text, scale, bias, features.constants["matched"])
        return loss, self.metric_sums(features, correct)

    def metric_sums(self, features: Features, correct: Tensor) -> dict[str, Tensor]:
        bias = features.shared["logit_bias"].detach().squeeze().float()
        return {
            **super().metric_sums(features, correct),
            "bias": bias * features.constants["matched"].sum(),
        }

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes in fp32: text features and their gradients, and the mask of matches."""
        features = 4 * global_batch * model.config.projection_dim
        return features, features, 4 * global_batch
