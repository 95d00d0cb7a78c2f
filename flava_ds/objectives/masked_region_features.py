"""Predicts the features of masked regions: masked region feature regression (UNITER, LXMERT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.layers.heads import MaskedPredictionHead, TiedFeatureHead
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss
from flava_ds.objectives.region_masks import MaskedRegions, MaskedRegionsConfig

DISTANCES: Mapping[str, Callable[..., Tensor]] = {"squared": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


@dataclass(frozen=True, kw_only=True)
class MaskedRegionFeaturesConfig(MaskedRegionsConfig, type="mrfr"):
    """Masked region feature regression (MRFR)."""

    distance: Literal["squared", "smooth_l1"] = "squared"
    """Distance between predicted and true features, averaged over them: UNITER's, or LXMERT's."""
    tied_decoder: bool = True
    """Use the transpose of the model's map of features as the decoder, as UNITER does."""

    title: ClassVar[str] = "Region features"

    def build(self, config: Any) -> MaskedRegionFeatures:
        view = config.model.regions_view
        shape, size = config.model.shape_of(view), config.model.regions.feature_size
        kind = TiedFeatureHead if self.tied_decoder else MaskedPredictionHead
        return MaskedRegionFeatures(self, kind(shape.hidden_size, size, shape.layer_norm_eps), view)

    def check(self, where: str, config: Any) -> None:
        super().check(where, config)
        if self.tied_decoder:
            config.model.check_provides("region_table", f"{where}.tied_decoder")


class MaskedRegionFeatures(MaskedRegions):
    """Distance of the predicted features from the detector's, over the masked regions.

    Source: Chen et al. 2020, UNITER, section 3.2; Tan & Bansal 2019, LXMERT, section 3.1; their code.
    """

    metrics: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: MaskedRegionFeaturesConfig, head: nn.Module, view: str) -> None:
        super().__init__(config, view)
        self.head: Any = head
        self.distance = DISTANCES[config.distance]

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        table = (model.region_table(),) if isinstance(self.head, TiedFeatureHead) else ()
        told = at_least_fp32(self.head.logits(hidden[self.view], *table))
        features = batch["region_features"].index_select(0, batch["region_masked_rows"]).to(told.dtype)
        return Loss(self.distance(told, features, reduction="none").mean(1).sum(), self.count(batch))

    def flops(self, model: Any, batch: Batch) -> float:
        shape = model.config.shape_of(self.view)
        width = shape.hidden_size + batch["region_features"].shape[1]
        return self.count(batch) * 2 * shape.hidden_size * width
