"""Predicting masked tokens: MLM on text alone, MMM-text on pairs (paper, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from flava_ds.batch import Batch, Kind, Loss, View
from flava_ds.config import MaskedTextConfig
from flava_ds.families.flava.model import Flava
from flava_ds.layers.heads import MaskedPredictionHead
from flava_ds.layers.transformer import Encoded
from flava_ds.objectives.base import Objective


class MaskedLanguageModeling(Objective):
    """Cross-entropy over masked tokens of text batches, read from the text encoder."""

    kinds = frozenset({Kind.TEXT})
    needs = frozenset({View.TEXT_MASKED})
    view = View.TEXT_MASKED

    def __init__(self, config: MaskedTextConfig, head: MaskedPredictionHead):
        super().__init__(config.weight)
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch.mlm_rows.shape[0]

    def rows(self, model: Flava, batch: Batch) -> Tensor:
        """Rows of the view's packed output that hold the tokens to predict: [k]."""
        return batch.mlm_rows

    def reads(self, model: Flava, batch: Batch) -> dict[View, Tensor]:
        return {self.view: self.rows(model, batch)}

    def forward(self, model: Flava, encoded: dict[View, Encoded], batch: Batch) -> Loss:
        loss, correct = self.head.loss(encoded[self.view].rows(self.rows(model, batch)), batch.mlm_labels)
        return Loss(loss, self.count(batch), {"correct": correct})


class MultimodalMaskedLanguageModeling(MaskedLanguageModeling):
    """The same over matched pairs, read from the multimodal encoder."""

    kinds = frozenset({Kind.PAIR})
    needs = frozenset({View.MULTIMODAL_MASKED})
    view = View.MULTIMODAL_MASKED

    def rows(self, model: Flava, batch: Batch) -> Tensor:
        return model.layout(batch).text_rows(batch.mlm_rows)
