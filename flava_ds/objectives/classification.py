"""Classification of a sample by its first query: answers to questions, entailment, classes of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.errors import ConfigError
from flava_ds.layers.heads import MaskedPredictionHead
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss, Objective

EPS = 1e-12
"""Of the head's LayerNorm, as BERT's."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(ObjectiveConfig, type="classification"):
    """Labels of whole samples: one class each, or answers of which each is right to a degree."""

    task: str = "question"
    """The task whose samples it reads, which is the kind of its steps."""
    num_classes: Annotated[int, AtLeast(2), AtMost(2**24)] = 3129
    """Classes, or answers; the default is VQAv2's number."""
    num_queries: Annotated[int, AtLeast(1), AtMost(10_000)] = 25
    """Queries of the decoder, of which the first is read."""
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    """Cross-entropy over classes, or binary cross-entropy of each answer with its score, summed."""

    targets: ClassVar[Literal["labels", "boxes"] | None] = "labels"

    @property
    def kinds(self) -> frozenset[str]:  # type: ignore[override]  # each task is a kind of its own
        """The kind of its steps."""
        return frozenset({self.task})

    def classes(self, config: Any) -> int | None:
        return self.num_classes if self.loss == "cross_entropy" else None

    def build(self, config: Any) -> Classification:
        return Classification(self, config.model.shape_of(self.task).hidden_size)

    def check(self, where: str, config: Any) -> None:
        config.model.check_view(self.task, where)
        for name, source in config.data.sources.items():
            if source.step_kind == self.task and self.loss == "cross_entropy" and source.max_targets != 1:
                raise ConfigError(
                    f"source '{name}': max_targets is {source.max_targets}, but {where} takes one class of a "
                    f"sample; set --data.sources.{name}.max-targets 1, or --{where}.loss binary"
                )


class Classification(Objective):
    """Dense, GELU, LayerNorm and a classifier on the first query, as BERT's for words.

    Source: Hu & Singh 2021, section 3.4 and its code; VQA's loss is that of Teney et al. 2018.
    """

    def __init__(self, config: ClassificationConfig, hidden_size: int):
        super().__init__(config.weight)
        self.kinds, self.view, self.needs = config.kinds, config.task, config.kinds
        self.config = config
        self.head = MaskedPredictionHead(hidden_size, config.num_classes, EPS)

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.first_rows(self.view, batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        labels = batch["target_labels"]
        if self.config.loss == "cross_entropy":
            loss, correct = self.head.loss(hidden[self.view], labels)
            return Loss(loss, self.count(batch), {"correct": correct})
        logits = at_least_fp32(self.head.logits(hidden[self.view]))
        bounds = batch["target_cu_seqlens"]
        sample = torch.searchsorted(bounds[1:], torch.arange(len(labels), device=bounds.device), right=True)
        scores = torch.zeros_like(logits).index_put((sample, labels), batch["target_scores"].to(logits.dtype))
        loss = F.binary_cross_entropy_with_logits(logits, scores, reduction="sum")
        correct = scores.gather(1, logits.detach().argmax(-1, keepdim=True)).sum()
        return Loss(loss, self.count(batch), {"correct": correct})

    def flops(self, model: Any, batch: Batch) -> float:
        return 2.0 * batch.size * (self.head.dense.weight.numel() + self.head.decoder.weight.numel())
