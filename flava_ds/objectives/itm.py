"""Image-text matching: does this caption belong to this image? (FLAVA, section 3.2)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.layers.heads import MatchingHead
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss, Objective


@dataclass(frozen=True, kw_only=True)
class ImageTextMatchingConfig(ObjectiveConfig, type="itm"):
    """Image-text matching: replaces a caption by another sample's with the given probability."""

    mismatch_probability: Share = 0.1
    """Probability that a pair gets another sample's caption."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Image-text matching"

    def classes(self, config: Any) -> int:
        return 2

    def corruptions(self, config: Any, source: Any) -> tuple[MatchLabels]:
        return (MatchLabels(),)

    def build(self, config: Any) -> ImageTextMatching:
        """Builds the objective with its head."""
        return ImageTextMatching(self, MatchingHead(config.model.shape_of("multimodal_masked").hidden_size))


@dataclass(frozen=True)
class MatchLabels:
    """Adds

    Shapes:
        itm_labels  [m]  int64, 1 match, 0 mismatch
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        return {"itm_labels": draft.matched.astype(np.int64)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8


class ImageTextMatching(Objective):
    """Two-way cross-entropy on CLS_M of the masked pass, over all masked pairs."""

    kinds = ImageTextMatchingConfig.kinds
    needs = frozenset({"multimodal_masked"})

    def __init__(self, config: ImageTextMatchingConfig, head: MatchingHead):
        super().__init__(config.weight)
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch["itm_labels"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {view: model.first_rows(view, batch) for view in self.needs}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        logits = at_least_fp32(self.head(hidden["multimodal_masked"]))
        labels = batch["itm_labels"]
        correct = (logits.detach().argmax(-1) == labels).sum().float()
        return Loss(F.cross_entropy(logits, labels, reduction="sum"), self.count(batch), {"correct": correct})
