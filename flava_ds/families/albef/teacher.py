"""ALBEF's teacher: an average of its weights, whose features and predictions are targets."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.families.albef.model import Albef
from flava_ds.layers.heads import tied_words
from flava_ds.layers.transformer import clamped
from flava_ds.objectives.momentum_contrastive import COLDEST, HOTTEST
from flava_ds.objectives.state import EmaTeacher


class AlbefTeacher(EmaTeacher):
    """Its dropout is that of training, as in the published code. Adds, of the pairs themselves:

    Shapes:
        teacher_image, teacher_text  [b r]  fp32, L2-normalised
        teacher_temperature          [1]
        teacher_logits               [k v]  of the masked tokens, if a distilled objective's head is given
    """

    def __init__(self, model: Albef, head: nn.Module | None, head_name: str, momentum: float) -> None:
        parts: dict[str, nn.Module] = {"model": copy.deepcopy(model)}
        follows = {"model.": "model."}
        if head is not None:
            parts["head"], follows["head."] = copy.deepcopy(head), f"objectives.{head_name}.head."
        super().__init__(nn.ModuleDict(parts), follows, lambda step: momentum)
        self.predicts = head is not None

    def complete(self, batch: Batch) -> Batch:
        parts: Any = self.network
        model = parts["model"]
        reads = model.embedding_rows(batch)
        if self.predicts:
            reads["multimodal_masked"] = batch["mlm_rows"]
        encoded = model.encode(batch, reads.keys(), reads, teaching=True)
        targets: dict[str, Tensor] = {
            "teacher_image": model.image_embeddings(encoded["image"].rows(reads["image"])),
            "teacher_text": model.text_embeddings(encoded["text"].rows(reads["text"])),
            "teacher_temperature": clamped(model.temperature, HOTTEST, COLDEST),
        }
        if self.predicts:
            head, states = parts["head"], encoded["multimodal_masked"].rows(batch["mlm_rows"])
            targets["teacher_logits"] = head.logits(states, *tied_words(head, model))
        return batch.having(**targets)
