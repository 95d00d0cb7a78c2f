"""Predicting codebook indices of masked patches: MIM on images alone, MMM-image on pairs (paper, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from flava_ds.batch import Batch, Kind, Loss, View, image_patch_rows
from flava_ds.config import MaskedImageConfig
from flava_ds.families.flava.model import Flava
from flava_ds.layers.heads import MaskedPredictionHead
from flava_ds.layers.transformer import Encoded
from flava_ds.objectives.base import Objective


class MaskedImageModeling(Objective):
    """Cross-entropy over masked patches of image batches, read from the image encoder."""

    kinds = frozenset({Kind.IMAGE})
    needs = frozenset({View.IMAGE_MASKED})
    view = View.IMAGE_MASKED

    def __init__(self, config: MaskedImageConfig, head: MaskedPredictionHead):
        super().__init__(config.weight)
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch.mim_rows.shape[0]

    def rows(self, model: Flava, batch: Batch) -> Tensor:
        """Rows of the view's packed output that hold the patches to predict: [k]."""
        return image_patch_rows(batch.mim_rows, model.config.image.num_patches)

    def reads(self, model: Flava, batch: Batch) -> dict[View, Tensor]:
        return {self.view: self.rows(model, batch)}

    def forward(self, model: Flava, encoded: dict[View, Encoded], batch: Batch) -> Loss:
        hidden = encoded[self.view].rows(self.rows(model, batch))
        loss, correct = self.head.loss(hidden, batch.image_codes.flatten().index_select(0, batch.mim_rows))
        return Loss(loss, self.count(batch), {"correct": correct})


class MultimodalMaskedImageModeling(MaskedImageModeling):
    """The same over matched pairs, read from the multimodal encoder."""

    kinds = frozenset({Kind.PAIR})
    needs = frozenset({View.MULTIMODAL_MASKED})
    view = View.MULTIMODAL_MASKED

    def rows(self, model: Flava, batch: Batch) -> Tensor:
        return model.layout(batch).patch_rows(batch.mim_rows)
