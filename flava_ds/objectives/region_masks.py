"""Masks regions of an image: which of them objectives predict, and which the model does not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.order import uniform_at
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.objectives.base import Objective

_SELECT_STREAM, _ACTION_STREAM = 22, 23


@dataclass(frozen=True, kw_only=True)
class MaskedRegionsConfig(ObjectiveConfig):
    """What objectives over masked regions share: all of a run read the same masks."""

    mask_probability: Share = 0.15
    """Probability that a region is predicted; at least one of a sample is, and never the whole image."""
    hidden_share: Share = 1.0
    """Share of the predicted regions whose features are hidden; the model sees the others as they are."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    drawn_once: ClassVar[tuple[str, ...]] = ("mask_probability", "hidden_share")

    def corruptions(self, config: Any, source: Any) -> tuple[RegionMask]:
        return (RegionMask(self.mask_probability, self.hidden_share),)

    def check(self, where: str, config: Any) -> None:
        config.model.check_provides("region_rows", where)


@dataclass(frozen=True)
class RegionMask:
    """Selects regions, at least one of each sample that has more than the whole image. Adds

    Shapes:
        region_masked_rows  [k]  int64, packed regions to predict
        region_hidden_rows  [j]  int64, those of them whose features the model does not see
    """

    mask_probability: float
    hidden_share: float

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        assert draft.regions is not None  # the plan of a family with `region_rows` has regions
        position, lengths = draft.regions.positions, draft.regions.lengths
        seeds, sample = np.repeat(draft.seeds, lengths), np.repeat(np.arange(len(lengths)), lengths)
        draws = np.where(position > 0, uniform_at(seeds, position, stream=_SELECT_STREAM), 2.0)
        chosen = draws < self.mask_probability
        lowest = np.minimum.reduceat(draws, np.cumsum(lengths) - lengths)
        # the region with the lowest draw is any of a sample's with equal probability
        chosen |= (draws == lowest[sample]) & (position > 0) & (self.mask_probability > 0)
        rows = np.flatnonzero(chosen)
        hidden = uniform_at(seeds[rows], position[rows], stream=_ACTION_STREAM) < self.hidden_share
        return {"region_masked_rows": rows, "region_hidden_rows": rows[hidden]}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 0 if plan.regions is None else 2 * 8 * plan.regions.most


class MaskedRegions(Objective):
    """Reads the masked regions of the family's `regions_view`."""

    kinds = MaskedRegionsConfig.kinds

    def __init__(self, config: MaskedRegionsConfig, view: str) -> None:
        super().__init__(config.weight)
        self.view, self.needs = view, frozenset({view})

    def count(self, batch: Batch) -> int:
        return batch["region_masked_rows"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {self.view: model.region_rows(self.view, batch["region_masked_rows"], batch)}
