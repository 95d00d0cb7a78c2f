"""The contrast of captions, tags and images: do all three belong together? (VinVL)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.errors import ConfigError
from flava_ds.objectives.base import Loss, Objective, classified

MATCH, WRONG_TAGS, WRONG_CAPTION = range(3)
"""The classes, in the order of the published code."""


@dataclass(frozen=True, kw_only=True)
class TagContrastConfig(ObjectiveConfig, type="tag_contrast"):
    """The three-way contrast: the tags or the caption are another sample's with the given probabilities."""

    wrong_tags_probability: Share = 0.25
    """Probability that the tags of the regions are another sample's."""
    wrong_caption_probability: Share = 0.25
    """Probability that the caption is another sample's."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Captions, tags, images"
    reads_tags: ClassVar[bool] = True
    drawn_once: ClassVar[tuple[str, ...]] = ("wrong_tags_probability", "wrong_caption_probability")

    def classes(self, config: Any) -> int:
        return 3

    def corruptions(self, config: Any, source: Any) -> tuple[ContrastLabels]:
        return (ContrastLabels(),)

    def build(self, config: Any) -> TagContrast:
        view = config.model.matching_view
        return TagContrast(self, config.model.shape_of(view).hidden_size, view)

    def check(self, where: str, config: Any) -> None:
        config.model.check_provides("tags", where)
        if self.wrong_tags_probability + self.wrong_caption_probability > 1 + 1e-9:
            raise ConfigError(
                f"{where}: wrong_tags_probability {self.wrong_tags_probability:g} and "
                f"wrong_caption_probability {self.wrong_caption_probability:g} are more than 1 together"
            )


@dataclass(frozen=True)
class ContrastLabels:
    """Adds

    Shapes:
        contrast_labels  [b]  int64, 0 where all belong together, 1 for wrong tags, 2 for a wrong caption
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        own = np.ones(len(draft.matched), dtype=bool) if draft.own_tags is None else draft.own_tags
        labels = np.where(own, MATCH, WRONG_TAGS)
        return {"contrast_labels": np.where(draft.matched, labels, WRONG_CAPTION).astype(np.int64)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8


class TagContrast(Objective):
    """Three-way cross-entropy on the pooled CLS, over all pairs.

    Source: Zhang et al. 2021, VinVL, section 3.1, and its code.
    """

    kinds = TagContrastConfig.kinds

    def __init__(self, config: TagContrastConfig, hidden_size: int, view: str) -> None:
        super().__init__(config.weight)
        self.view, self.needs = view, frozenset({view})
        self.classifier = nn.Linear(hidden_size, 3)

    def count(self, batch: Batch) -> int:
        return batch["contrast_labels"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.first_rows(self.view, batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        return classified(self.classifier(model.pooled(hidden[self.view])), batch["contrast_labels"])

    def flops(self, model: Any, batch: Batch) -> float:
        width = model.config.shape_of(self.view).hidden_size
        return self.count(batch) * 2 * width * (width + 3)

    def model_parameters(self, model: Any) -> set[str]:
        return super().model_parameters(model) | model.pooler_parameters()
