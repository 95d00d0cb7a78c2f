"""Contrastive loss whose gradient stays on the rank that computes it: the baseline of the paper's ablation.

Source: FLAVA, section 3.2 and table 4, "local contrastive".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.objectives.base import Features, of_all_ranks
from flava_ds.objectives.global_contrastive import GlobalContrastive, GlobalContrastiveConfig


@dataclass(frozen=True, kw_only=True)
class LocalContrastiveConfig(GlobalContrastiveConfig, type="local_contrastive"):
    """The global contrastive loss without the gradient for other ranks' features.

    Its value is that of the global loss. A rank's samples are compared with those of all ranks, which are
    constants to it.
    """

    parts_of_a_rank: Annotated[int, AtLeast(1), AtMost(2**16)] = 1
    """Equal parts of a rank's batch that stand for a rank each, so that a few ranks lose as much of the
    gradient as many do."""

    title: ClassVar[str] = "Local contrastive"

    def build(self, config: Any) -> LocalContrastive:
        return LocalContrastive(self)


class LocalContrastive(GlobalContrastive):
    """Symmetric InfoNCE, each part with the others' features as constants."""

    config: LocalContrastiveConfig

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = features.samples["image"], features.samples["text"]
        scale, matched = features.shared["log_scale"].exp(), features.constants["matched"]
        (images, first), (texts, _) = of_all_ranks(image.detach()), of_all_ranks(text.detach())
        loss, correct, smoothing = scale.new_zeros(()), scale.new_zeros(()), self.config.label_smoothing
        for rows in torch.arange(len(image), device=image.device).tensor_split(self.config.parts_of_a_rank):
            own, target = matched[rows], rows + first
            for ours, theirs, queries in ((image, texts, True), (text, images, False)):
                keys = theirs.index_copy(0, target, (text if queries else image)[rows])
                scores = scale * (ours[rows] @ keys.T).to(scale.dtype)
                terms = F.cross_entropy(scores, target, reduction="none", label_smoothing=smoothing)
                loss = loss + (terms * own).sum() / 2
                if queries:
                    correct = correct + ((scores.detach().argmax(1) == target) * own).sum()
        return loss, self.metric_sums(features, correct)

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes gathered in fp32: image features and text features, in the forward pass only."""
        return super().exchanged_bytes(model, global_batch)[:2]
