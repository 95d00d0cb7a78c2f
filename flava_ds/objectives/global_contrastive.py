"""Global contrastive loss: images against texts of all ranks, with gradients through all of them (paper, section 3.2)."""

from __future__ import annotations

import torch
from flava_kernels.contrastive import info_nce

from flava_ds.batch import Batch, Kind, Loss, View
from flava_ds.config import GlobalContrastiveConfig
from flava_ds.models.flava import Flava
from flava_ds.models.transformer import Encoded, at_least_fp32
from flava_ds.objectives.base import Objective


class GlobalContrastive(Objective):
    """Symmetric InfoNCE over the clean passes. Mismatched samples are no positives but stay negatives of the others."""

    kinds = frozenset({Kind.PAIR})
    needs = frozenset({View.IMAGE, View.TEXT})

    def __init__(self, config: GlobalContrastiveConfig):
        super().__init__(config.weight)
        self.config = config

    def count(self, batch: Batch) -> int:
        return batch.matched_rows.shape[0]

    def reads(self, model: Flava, batch: Batch) -> dict[View, torch.Tensor]:
        return {view: model.first_rows(view, batch) for view in self.needs}

    def forward(self, model: Flava, encoded: dict[View, Encoded], batch: Batch) -> Loss:
        image, text = model.image_embeddings(encoded[View.IMAGE]), model.text_embeddings(encoded[View.TEXT])
        matched = torch.zeros(batch.size, device=image.device).index_fill(0, batch.matched_rows, 1.0)
        loss, correct = info_nce(image, text, clamped(model.logit_scale, self.config.logit_scale_max), matched)
        return Loss(loss, self.count(batch), {"correct": correct})

    def model_parameters(self, model: Flava) -> set[str]:
        return super().model_parameters(model) | model.contrastive_parameters()


def clamped(logit_scale: torch.Tensor, maximum: float) -> torch.Tensor:
    """Clamps the log-space scale to [0, maximum] in the expression, passing the gradient on so that it can come back."""
    logit_scale = at_least_fp32(logit_scale)
    return logit_scale + (logit_scale.clamp(0.0, maximum) - logit_scale).detach()
