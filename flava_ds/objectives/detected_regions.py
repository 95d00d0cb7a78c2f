"""Predicts what a detector found: the class of every region, and the features of masked ones (LXMERT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.layers.heads import TransformHead
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss
from flava_ds.objectives.region_masks import MaskedRegions, MaskedRegionsConfig


@dataclass(frozen=True, kw_only=True)
class DetectedRegionsConfig(MaskedRegionsConfig, type="detected_regions"):
    """The detector's likeliest class of every region, and the features of the masked ones."""

    weight: Annotated[float, AtLeast(0), AtMost(10**6)] = 1 / 0.15
    """Factor of the mean over all regions in the loss; the default undoes the share of masked ones."""

    title: ClassVar[str] = "Detected regions"
    predicts_region_classes: ClassVar[bool] = True

    def build(self, config: Any) -> DetectedRegions:
        regions, view = config.model.regions, config.model.regions_view
        shape = config.model.shape_of(view)
        sizes = (regions.num_classes, regions.feature_size)
        return DetectedRegions(
            self, DetectedRegionsHead(shape.hidden_size, *sizes, shape.layer_norm_eps), view
        )


class DetectedRegionsHead(TransformHead):
    """Dense, GELU, LayerNorm, and from there a classifier and a map to features: [k d] -> [k z], [k y]."""

    def __init__(self, hidden_size: int, num_classes: int, feature_size: int, layer_norm_eps: float):
        super().__init__(hidden_size, layer_norm_eps)
        self.classes = nn.Linear(hidden_size, num_classes)
        self.features = nn.Linear(hidden_size, feature_size)


class DetectedRegions(MaskedRegions):
    """A sum over all regions: the cross-entropy of the detector's likeliest class, times its probability, and
    for masked regions the smooth L1 distance of their features, averaged over these.

    `accuracy` is the share of all regions whose class is found, and a region without any counts as
    not found; `metric/features` is the part of the features.

    Source: Tan and Bansal 2019, LXMERT, section 3.1.2, and its code, where only features follow the mask.
    """

    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy", "features": "features"}

    def __init__(self, config: DetectedRegionsConfig, head: DetectedRegionsHead, view: str) -> None:
        super().__init__(config, view)
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch["region_features"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        everything = torch.arange(self.count(batch), device=batch["region_features"].device)
        return {self.view: model.region_rows(self.view, everything, batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        rows, states = batch["region_masked_rows"], self.head.transform(hidden[self.view])
        logits = at_least_fp32(self.head.classes(states))
        sure, label = batch["region_classes"].to(logits.dtype).max(-1)
        of_classes = (F.cross_entropy(logits, label, reduction="none") * sure).sum()
        told = at_least_fp32(self.head.features(states.index_select(0, rows)))
        features = batch["region_features"].index_select(0, rows).to(told.dtype)
        of_features = F.smooth_l1_loss(told, features, reduction="none").mean(1).sum()
        correct = ((logits.detach().argmax(-1) == label) & (sure > 0)).sum().float()
        return Loss(
            of_classes + of_features,
            self.count(batch),
            {"correct": correct, "features": of_features.detach()},
        )

    def flops(self, model: Any, batch: Batch) -> float:
        width, masked = model.config.shape_of(self.view).hidden_size, batch["region_masked_rows"].shape[0]
        classes, features = batch["region_classes"].shape[1], batch["region_features"].shape[1]
        return 2 * width * (self.count(batch) * (width + classes) + masked * features)
