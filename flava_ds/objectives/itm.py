"""Image-text matching: does this caption belong to this image? (FLAVA, section 3.2)"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.plan import BatchPlan, Corruption, Draft
from flava_ds.layers.heads import MatchingHead
from flava_ds.objectives.base import Loss, Objective, classified


@dataclass(frozen=True, kw_only=True)
class ImageTextMatchingConfig(ObjectiveConfig, type="itm"):
    """Image-text matching: replaces a caption by another sample's with the given probability."""

    mismatch_probability: Share = 0.1
    """Probability that a pair gets another sample's caption."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Image-text matching"
    drawn_once: ClassVar[tuple[str, ...]] = ("mismatch_probability",)
    ignores_padding: ClassVar[bool] = True

    def views(self, config: Any) -> tuple[str, ...]:
        return (config.model.matching_view,)

    def classes(self, config: Any) -> int:
        return 2

    def corruptions(self, config: Any, source: Any) -> tuple[Corruption, ...]:
        return (MatchLabels(),)

    def build(self, config: Any) -> ImageTextMatching:
        """Builds the objective with its head, or with a classifier alone if the model has a pooler."""
        model = config.model
        if "pooled" in model.provides:
            return ImageTextMatching(self, nn.Linear(model.pooled_size, 2), *model.pooled_views, pooled=True)
        view = model.matching_view
        return ImageTextMatching(self, MatchingHead(model.shape_of(view).hidden_size), view)


def prior_log_odds(mismatch_probability: float) -> float:
    """Returns the log odds of a match in training, to be subtracted from the head's.

    Where mismatches are few, the head is biased towards 'match'.
    """
    mismatch = min(max(mismatch_probability, 1e-3), 1 - 1e-3)
    return math.log((1 - mismatch) / mismatch)


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
    """Two-way cross-entropy on each pair's first row in the family's `matching_view`: in FLAVA, CLS_M of the
    masked pass, over all masked pairs.

    With `pooled`, the head reads what the model's pooler makes of the first rows of `views`.
    """

    kinds = ImageTextMatchingConfig.kinds

    def __init__(self, config: ImageTextMatchingConfig, head: nn.Module, *views: str, pooled: bool = False):
        super().__init__(config.weight)
        self.needs, self.views = frozenset(views), views
        self.head, self.pooled = head, pooled

    def count(self, batch: Batch) -> int:
        return batch["itm_labels"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {view: model.first_rows(view, batch) for view in self.views}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        first = [hidden[view] for view in self.views]
        return classified(self.head(model.pooled(*first) if self.pooled else first[0]), batch["itm_labels"])

    def model_parameters(self, model: Any) -> set[str]:
        return super().model_parameters(model) | (model.pooler_parameters() if self.pooled else set())
