"""Masked language modelling on pairs with a teacher's predictions among the targets.

Source: Li et al. 2021, ALBEF, section 3.3, and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share, Steps
from flava_ds.layers.heads import tied_words
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss
from flava_ds.objectives.masked_text import MaskedLanguageModeling, MultimodalMaskedTextConfig
from flava_ds.objectives.momentum_contrastive import grown


@dataclass(frozen=True, kw_only=True)
class DistilledTextConfig(MultimodalMaskedTextConfig, type="mlm_distilled"):
    """Masked language modelling on pairs, whose targets are partly a teacher's predictions."""

    whole_word: bool = False
    tied_decoder: bool = True
    distillation: Share = 0.4
    """Share of the teacher's predictions in the targets; the rest is the masked token."""
    distillation_steps: Steps = 0
    """Steps over which that share grows from 0 on a straight line; the first epoch as published."""

    title: ClassVar[str] = "Masked language, distilled"
    ignores_padding: ClassVar[bool] = False

    def build(self, config: Any) -> DistilledText:
        return DistilledText(self, super().build(config).head)

    def check(self, where: str, config: Any) -> None:
        super().check(where, config)
        config.model.check_provides("teacher", where)


class DistilledText(MaskedLanguageModeling):
    """Cross-entropy over the masked tokens against the token and the teacher's `teacher_logits` [k v]; in
    evaluation mode against the token alone.
    """

    def __init__(self, config: DistilledTextConfig, head: Any):
        super().__init__(config, head)
        self.config = config

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        share = grown(self.config.distillation, self.config.distillation_steps, batch.step)
        if share == 0 or not self.training:
            return super().forward(model, hidden, batch)
        logits = self.head.logits(hidden[self.view], *tied_words(self.head, model))
        log_shares = at_least_fp32(logits).log_softmax(-1)
        labels, targets = batch["mlm_labels"], at_least_fp32(batch["teacher_logits"]).softmax(-1)
        hard, soft = F.nll_loss(log_shares, labels, reduction="sum"), -(targets * log_shares).sum()
        correct = (log_shares.detach().argmax(-1) == labels).sum().float()
        return Loss((1 - share) * hard + share * soft, self.count(batch), {"correct": correct})
