"""Global contrastive loss: images against texts of all ranks and micro-batches, with gradients through all of them (paper, section 3.2).

With gradient accumulation the samples of a step never stand in one graph. Two passes give the loss of the whole step all the same: first the
features of every micro-batch without a graph, then the loss over all of them and its gradient for each feature, and then, micro-batch by
micro-batch, the ordinary pass with sum(features * gradient) in the loss's place. Its cost is one forward pass of the two clean encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flava_kernels.contrastive import info_nce
from torch import Tensor

from flava_ds.batch import Batch, Kind, Loss, View
from flava_ds.config import GlobalContrastiveConfig
from flava_ds.families.flava.model import Flava
from flava_ds.layers.transformer import Encoded, at_least_fp32
from flava_ds.objectives.base import Objective


@dataclass(frozen=True)
class Features:
    """What the loss needs of one micro-batch.

    Shapes:
        image      [b r]  L2-normalised
        text       [b r]
        log_scale  [1]    clamped
        matched    [b]    1 where the caption is the image's own, else 0
    """

    image: Tensor
    text: Tensor
    log_scale: Tensor
    matched: Tensor


@dataclass(frozen=True)
class FeatureGradients:
    """One micro-batch's part of the loss over a whole step: its gradient for the features, and an equal share of the sums.

    Shapes:
        image      [b r]
        text       [b r]
        log_scale  [1]
        loss       scalar
        correct    scalar
    """

    image: Tensor
    text: Tensor
    log_scale: Tensor
    loss: Tensor
    correct: Tensor


class GlobalContrastive(Objective):
    """Symmetric InfoNCE over the clean passes. Mismatched samples are no positives but stay negatives of the others."""

    kinds = frozenset({Kind.PAIR})
    needs = frozenset({View.IMAGE, View.TEXT})

    def __init__(self, config: GlobalContrastiveConfig):
        super().__init__(config.weight)
        self.config = config

    def count(self, batch: Batch) -> int:
        return batch.matched_rows.shape[0]

    def reads(self, model: Flava, batch: Batch) -> dict[View, Tensor]:
        return {view: model.first_rows(view, batch) for view in self.needs}

    def features(self, model: Flava, encoded: dict[View, Encoded], batch: Batch) -> Features:
        """Projects both CLS of every sample into the contrastive space."""
        image, text = model.image_embeddings(encoded[View.IMAGE]), model.text_embeddings(encoded[View.TEXT])
        matched = torch.zeros(batch.size, device=image.device).index_fill(0, batch.matched_rows, 1.0)
        return Features(image, text, clamped(model.logit_scale, self.config.logit_scale_max), matched)

    def forward(self, model: Flava, encoded: dict[View, Encoded], batch: Batch, gradients: FeatureGradients | None = None) -> Loss:
        """Sums the loss over the samples of all ranks in this micro-step; with `gradients`, over those of the whole step."""
        ours = self.features(model, encoded, batch)
        if gradients is None:
            loss, correct = info_nce(ours.image, ours.text, ours.log_scale, ours.matched)
            return Loss(loss, self.count(batch), {"correct": correct})
        pulled = (ours.image * gradients.image).sum() + (ours.text * gradients.text).sum() + (ours.log_scale * gradients.log_scale).sum()
        return Loss(gradients.loss + (pulled - pulled.detach()), self.count(batch), {"correct": gradients.correct})

    def model_parameters(self, model: Flava) -> set[str]:
        return super().model_parameters(model) | model.contrastive_parameters()


@torch.enable_grad()
def step_gradients(parts: Sequence[Features]) -> list[FeatureGradients]:
    """Computes the loss over all micro-batches of all ranks, and its gradient for each micro-batch of this rank, in order."""
    image, text = (torch.cat([getattr(part, name) for part in parts]).detach().requires_grad_() for name in ("image", "text"))
    log_scale = parts[0].log_scale.detach().requires_grad_()
    loss, correct = info_nce(image, text, log_scale, torch.cat([part.matched for part in parts]))
    d_image, d_text, d_log_scale = torch.autograd.grad(loss, (image, text, log_scale))
    sizes, share = [part.image.shape[0] for part in parts], 1 / len(parts)
    own = zip(d_image.split(sizes), d_text.split(sizes), strict=True)
    return [FeatureGradients(part_image, part_text, d_log_scale * share, loss.detach() * share, correct * share) for part_image, part_text in own]


def clamped(logit_scale: Tensor, maximum: float) -> Tensor:
    """Clamps the log-space scale to [0, maximum] in the expression, passing the gradient on so that it can come back."""
    logit_scale = at_least_fp32(logit_scale)
    return logit_scale + (logit_scale.clamp(0.0, maximum) - logit_scale).detach()
