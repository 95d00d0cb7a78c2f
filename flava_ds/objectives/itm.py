"""Image-text matching: does this caption belong to this image? (paper, section 3.2)"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import Batch, Kind, Loss, View
from flava_ds.config import ImageTextMatchingConfig
from flava_ds.families.flava.model import Flava
from flava_ds.layers.heads import MatchingHead
from flava_ds.layers.transformer import Encoded, at_least_fp32
from flava_ds.objectives.base import Objective


class ImageTextMatching(Objective):
    """Two-way cross-entropy on CLS_M of the masked pass, over all pairs of the batch."""

    kinds = frozenset({Kind.PAIR})
    needs = frozenset({View.MULTIMODAL_MASKED})

    def __init__(self, config: ImageTextMatchingConfig, head: MatchingHead):
        super().__init__(config.weight)
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Flava, batch: Batch) -> dict[View, Tensor]:
        return {view: model.first_rows(view, batch) for view in self.needs}

    def forward(self, model: Flava, encoded: dict[View, Encoded], batch: Batch) -> Loss:
        logits = at_least_fp32(self.head(encoded[View.MULTIMODAL_MASKED].first()))
        correct = (logits.detach().argmax(-1) == batch.itm_labels).sum().float()
        return Loss(F.cross_entropy(logits, batch.itm_labels, reduction="sum"), self.count(batch), {"correct": correct})
