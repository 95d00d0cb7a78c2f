"""Contrastive learning of images alone: two augmented views of an image find each other among those of all
other images of a step.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations". The
negatives of a view are the other images' other views, as in MoCo v3 (Chen, Xie, He 2021): g - 1 of them
instead of SimCLR's 2g - 2. So the loss is the same tiled operator as for images and texts, with gradients
through all ranks and no matrix of g x g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from flava_kernels.contrastive import info_nce
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Above, AtLeast, AtMost
from flava_ds.config.data import ImageTransformConfig
from flava_ds.config.data_checks import check_transform
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.plan import Crops
from flava_ds.layers.fused import LinearGELU
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.layers.work import image_flops
from flava_ds.objectives.base import Features, OfCrops, PooledObjective


@dataclass(frozen=True, kw_only=True)
class SimclrConfig(ObjectiveConfig, type="simclr"):
    """SimCLR on images, with its published augmentation at strength 1."""

    temperature: Annotated[float, Above(0), AtMost(100)] = 0.1
    """Divides the cosines; 0.1 is the published best at large batches."""
    head_hidden_size: Annotated[int, AtLeast(1), AtMost(2**17)] = 2048
    projection_size: Annotated[int, AtLeast(1), AtMost(2**17)] = 128
    """Width of what is compared."""
    view: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(
            crop_scale=(0.08, 1.0),
            horizontal_flip=0.5,
            brightness=0.8,
            contrast=0.8,
            saturation=0.8,
            hue=0.2,
            jitter_probability=0.8,
            grayscale=0.2,
            blur=0.5,
        )
    )
    """How both views are made, each by its own draws."""

    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    title: ClassVar[str] = "SimCLR"
    reads_image: ClassVar[bool] = False
    ignores_padding: ClassVar[bool] = True

    def crops(self, config: Any, source: Any) -> dict[str, Crops]:
        return {"two_views": Crops(size=config.model.image_size, transforms=(self.view, self.view))}

    def build(self, config: Any) -> Simclr:
        return Simclr(self, config.model.shape_of("image"))

    def check(self, where: str, config: Any) -> None:
        check_transform(f"{where}.view", self.view)


class Simclr(OfCrops, PooledObjective):
    """Symmetric InfoNCE between the first and the second views of all images of a step."""

    kinds = SimclrConfig.kinds

    def __init__(self, config: SimclrConfig, shape: Any) -> None:
        super().__init__(config.weight)
        self.config, self.shape = config, shape
        self.head = nn.Sequential(
            LinearGELU(shape.hidden_size, config.head_hidden_size),
            nn.Linear(config.head_hidden_size, config.projection_size),
        )

    def flops(self, model: Any, batch: Batch) -> float:
        head = 2 * self.config.head_hidden_size * (self.shape.hidden_size + self.config.projection_size)
        return 2 * batch.size * (image_flops(self.shape, self.shape.image_size) + head)

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        """Projects the CLS of both views, L2-normalised: first, second [b r]."""
        views = batch["two_views"]
        projected = self.head(model.image_encoder.first_tokens(views.flatten(0, 1)))
        first, second = F.normalize(at_least_fp32(projected), dim=-1).unflatten(0, views.shape[:2]).unbind(1)
        return Features({"first": first.contiguous(), "second": second.contiguous()})

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = features.samples["first"], features.samples["second"]
        scale = torch.full((1,), -math.log(self.config.temperature), device=first.device, dtype=first.dtype)
        loss, correct = info_nce(first, second, scale, torch.ones_like(first[:, 0]))
        return loss, {"correct": correct}

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, int, int]:
        """Returns the bytes that the ranks gather in fp32: both views' features, and three numbers per
        image."""
        features = 4 * global_batch * self.config.projection_size
        return features, features, 4 * global_batch * 3
