"""Self-distillation from crops: a student sees large and small crops of an image, an averaged teacher the
large ones alone. What the objectives that do so share.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost, Between, Range
from flava_ds.config.data import ImageTransformConfig
from flava_ds.config.data_checks import check_transform
from flava_ds.config.objectives import ObjectiveConfig, check_single
from flava_ds.config.schedules import along_cosine
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Corruption, Crops, Draft
from flava_ds.errors import ConfigError
from flava_ds.layers.work import image_flops
from flava_ds.objectives.base import FeatureGradients, Features, Loss, OfCrops, PooledObjective
from flava_ds.objectives.dino_head import DinoHead

_JITTER: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "jitter_probability": 0.8,
    "grayscale": 0.2,
}
_LARGE, _SMALL = (0.4, 1.0), (0.05, 0.4)
_PATH_STREAM = 13


@dataclass(frozen=True, kw_only=True)
class MultiCropConfig(ObjectiveConfig):
    """Crops, teacher and head, with the published numbers of DINO's ViT-S; not a variant itself."""

    head_hidden_size: Annotated[int, AtLeast(1), AtMost(2**17)] = 2048
    """Width of the head's two hidden layers."""
    bottleneck_size: Annotated[int, AtLeast(1), AtMost(2**17)] = 256
    """Width of the head's output, which is L2-normalised."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.996
    """What the teacher keeps of itself at the first update."""
    teacher_momentum_end: Annotated[float, Between(0, 1)] = 1.0
    """The same at training.total_steps, along half a cosine."""
    stochastic_depth: Annotated[float, Range(0, 1, open_most=True)] = 0.1
    """Probability that the student's last block adds nothing to a crop, for attention and MLP each; from 0 in
    the first block it grows by equal steps. What is added otherwise is scaled up."""
    local_crops: Annotated[int, AtLeast(0), AtMost(64)] = 8
    """Small crops of a image, which the student alone sees."""
    local_size: Annotated[int, AtLeast(1), AtMost(2**14)] = 96
    """Their edge in pixels, a multiple of the patch's. The two large ones have model.image.image_size."""
    first_global: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(crop_scale=_LARGE, blur=1.0, **_JITTER)
    )
    """How the first large crop is made."""
    second_global: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(crop_scale=_LARGE, blur=0.1, solarize=0.2, **_JITTER)
    )
    """How the second one is made."""
    local: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(crop_scale=_SMALL, blur=0.5, **_JITTER)
    )
    """How small crops are made."""

    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    reads_image: ClassVar[bool] = False
    ignores_padding: ClassVar[bool] = True

    def corruptions(self, config: Any, source: Any) -> tuple[Corruption, ...]:
        layers = config.model.shape_of("image").num_hidden_layers
        return (PathDraws(2 + self.local_crops, layers),) if self.stochastic_depth else ()

    def crops(self, config: Any, source: Any) -> dict[str, Crops]:
        large = Crops(size=config.model.image_size, transforms=(self.first_global, self.second_global))
        small = Crops(size=self.local_size, transforms=(self.local,) * self.local_crops)
        return {"global_crops": large, **({"local_crops": small} if self.local_crops else {})}

    def check(self, where: str, config: Any) -> None:
        check_single(
            MultiCropConfig, config.objectives, "each have a teacher, and a batch holds one's targets"
        )
        for name in ("first_global", "second_global", "local"):
            check_transform(f"{where}.{name}", getattr(self, name))
        if not hasattr(config.model, "image"):
            return  # a family without an image encoder of this name has no steps of images either
        patch = config.model.image.patch_size
        if self.local_crops and self.local_size % patch:
            raise ConfigError(
                f"{where}.local_size {self.local_size} is not divisible by model.image.patch_size {patch}; "
                f"use {max(1, round(self.local_size / patch)) * patch}"
            )


@dataclass(frozen=True)
class PathDraws:
    """Draws what decides over stochastic depth. Adds

    Shapes:
        path_draws  [b a L 2]  float32 in [0, 1), for each crop, block, and attention or MLP
    """

    crops: int
    layers: int

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        draws = uniforms(draft.seeds, self.crops * self.layers * 2, stream=_PATH_STREAM)
        return {"path_draws": draws.reshape(-1, self.crops, self.layers, 2).astype(np.float32)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 4 * self.crops * self.layers * 2


class Seen(NamedTuple):
    """What the student makes of a micro-batch's crops.

    Shapes:
        large    [b 2 d]  CLS, or what a head makes of it
        small    [b a d]  the same, or None without small crops
        patches  [m d]    masked patches of large crops, or None without masks
    """

    large: Tensor
    small: Tensor | None
    patches: Tensor | None


class MultiCrop(OfCrops):
    """Encodes the crops in one pass per resolution.

    A subclass has a `head` and compares the student with the teacher's targets, which the batch holds.
    """

    kinds = MultiCropConfig.kinds
    head: DinoHead

    def __init__(self, config: MultiCropConfig, shape: Any, total_steps: int) -> None:
        super().__init__(config.weight)
        self.crops_config, self.shape, self.total_steps = config, shape, total_steps

    @abstractmethod
    def matched(self, seen: Seen, batch: Batch) -> Loss:
        """Sums the loss over images."""

    def momentum(self, step: int) -> float:
        """Returns what the teacher keeps of itself at an update."""
        begin, end = self.crops_config.teacher_momentum, self.crops_config.teacher_momentum_end
        return along_cosine(begin, end, step / self.total_steps)

    def flops(self, model: Any, batch: Batch) -> float:
        """Counts the student's crops, and the teacher's, which have no backward pass, as a third."""
        large = image_flops(self.shape, self.shape.image_size) + self.head.flops
        small = image_flops(self.shape, self.crops_config.local_size) + self.head.flops
        return batch.size * (2 * large * (1 + 1 / 3) + self.crops_config.local_crops * small)

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        return self.matched(self.student(model, batch), batch)

    def student(self, model: Any, batch: Batch, *, small: bool = True) -> Seen:
        """Encodes the large crops and, if wanted, the small ones."""
        encoder, crops = model.image_encoder, batch["global_crops"]
        paths = self.paths(batch, encoder.cls_token.dtype)
        if "crop_mask" in batch:
            mask = batch["crop_mask"].flatten(0, 1)
            first, patches = encoder.tokens(crops.flatten(0, 1), batch["crop_mask_rows"], mask, paths[0])
        else:
            first, patches = encoder.first_tokens(crops.flatten(0, 1), paths[0]), None
        large = first.unflatten(0, crops.shape[:2])
        if not small or "local_crops" not in batch:
            return Seen(large, None, patches)
        crops = batch["local_crops"]
        first = encoder.first_tokens(crops.flatten(0, 1), paths[1])
        return Seen(large, first.unflatten(0, crops.shape[:2]), patches)

    def paths(self, batch: Batch, dtype: torch.dtype) -> list[Tensor | None]:
        """Returns the factors of stochastic depth for the global crops and for the local ones: [b*a L 2]."""
        if "path_draws" not in batch:
            return [None, None]
        draws = batch["path_draws"]
        rates = torch.linspace(0, self.crops_config.stochastic_depth, draws.shape[2], device=draws.device)[
            :, None
        ]
        factors = ((draws >= rates) / (1 - rates)).to(dtype)
        return [factors[:, :2].flatten(0, 1), factors[:, 2:].flatten(0, 1)]


class Spread(MultiCrop, PooledObjective):
    """Adds a term that spreads the student's large crops, over all images of a step."""

    @staticmethod
    def spread(large: Tensor) -> Features:
        """Returns what the term needs, the student's large crops by view: [b 2 d]."""
        first, second = large.unbind(1)
        return Features({"first": first.contiguous(), "second": second.contiguous()})

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        return self.spread(self.student(model, batch, small=False).large)

    def forward(
        self,
        model: Any,
        hidden: Mapping[str, Tensor],
        batch: Batch,
        gradients: FeatureGradients | None = None,
    ) -> Loss:
        """Sums the loss over this micro-batch; its term is over all ranks, or the whole step's."""
        seen = self.student(model, batch)
        own, term = self.matched(seen, batch), self.pooled(self.spread(seen.large), batch, gradients)
        return dataclasses.replace(own, sum=own.sum + term.sum, metrics={**own.metrics, **term.metrics})
