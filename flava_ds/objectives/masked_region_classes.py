"""Predicts what a detector sees in masked regions: masked region classification (UNITER, VL-BERT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.layers.heads import MaskedPredictionHead
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.layers.work import head_flops
from flava_ds.objectives.base import Loss
from flava_ds.objectives.region_masks import MaskedRegions, MaskedRegionsConfig


@dataclass(frozen=True, kw_only=True)
class MaskedRegionClassesConfig(MaskedRegionsConfig, type="mrc"):
    """Masked region classification (MRC): targets are a detector's probabilities of its classes."""

    loss: Literal["divergence", "cross_entropy"] = "divergence"
    """Kullback-Leibler divergence as in UNITER and ViLBERT, or soft cross-entropy as in VL-BERT; they differ
    by the targets' entropy, which has no gradient.
    """

    title: ClassVar[str] = "Region classes"
    predicts_region_classes: ClassVar[bool] = True

    def classes(self, config: Any) -> int | None:
        return config.model.regions.num_classes if self.loss == "cross_entropy" else None

    def build(self, config: Any) -> MaskedRegionClasses:
        view = config.model.regions_view
        shape, classes = config.model.shape_of(view), config.model.regions.num_classes
        return MaskedRegionClasses(
            self, MaskedPredictionHead(shape.hidden_size, classes, shape.layer_norm_eps), view
        )


class MaskedRegionClasses(MaskedRegions):
    """Divergence of the predicted from the detector's classes, over the masked regions.

    Source: Chen et al. 2020, UNITER, section 3.2 (MRC-kl); Su et al. 2020, VL-BERT, section 3.3; their code.
    """

    def __init__(self, config: MaskedRegionClassesConfig, head: MaskedPredictionHead, view: str) -> None:
        super().__init__(config, view)
        self.head, self.subtracts = head, config.loss == "divergence"

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        told = at_least_fp32(self.head.logits(hidden[self.view])).log_softmax(-1)
        targets = batch["region_classes"].index_select(0, batch["region_masked_rows"]).to(told.dtype)
        loss = -(targets * told).sum()
        if self.subtracts:
            loss = loss + torch.xlogy(targets, targets).sum()
        correct = (told.detach().argmax(-1) == targets.argmax(-1)).sum().float()
        return Loss(loss, self.count(batch), {"correct": correct})

    def flops(self, model: Any, batch: Batch) -> float:
        width = model.config.shape_of(self.view).hidden_size
        return self.count(batch) * head_flops(width, batch["region_classes"].shape[1])
