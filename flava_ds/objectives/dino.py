"""Self-distillation without labels (DINO): a student matches, on small crops of a image, what an averaged
teacher says of large ones.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Above, AtLeast, AtMost, Between, Range, Steps
from flava_ds.config.data import ImageTransformConfig
from flava_ds.config.data_checks import check_transform
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.config.schedules import along_cosine
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Crops, Draft
from flava_ds.errors import ConfigError
from flava_ds.layers.work import image_flops
from flava_ds.objectives.base import Loss, Objective
from flava_ds.objectives.dino_head import DinoHead
from flava_ds.objectives.dino_states import Centre, CollapseWatch, DinoTeacher
from flava_ds.objectives.sinkhorn import balanced
from flava_ds.objectives.state import TrainingState

Temperature = Annotated[float, Above(0), AtMost(100)]
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
class DinoConfig(ObjectiveConfig, type="dino"):
    """DINO on images, with the published numbers of ViT-S; recipes say where others are."""

    num_prototypes: Annotated[int, AtLeast(2), AtMost(2**24)] = 65_536
    """Classes that teacher and student agree on; some 1,000 to 8,000 for small data."""
    head_hidden_size: Annotated[int, AtLeast(1), AtMost(2**17)] = 2048
    """Width of the head's two hidden layers."""
    bottleneck_size: Annotated[int, AtLeast(1), AtMost(2**17)] = 256
    """Width of what is compared with the prototypes."""
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    """At the start. Lower sharpens more; above 0.07 is unstable."""
    teacher_temperature_end: Temperature = 0.04
    """After teacher_temperature_steps, which it reaches on a straight line."""
    teacher_temperature_steps: Steps = 0
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.996
    """What the teacher keeps of itself at the first update."""
    teacher_momentum_end: Annotated[float, Between(0, 1)] = 1.0
    """The same at training.total_steps, along half a cosine."""
    balance: Literal["centre", "sinkhorn"] = "centre"
    """What keeps the teacher from saying the same of all images: a running centre that is taken away (as
    published), or Sinkhorn's iteration over all crops of a step (DINOv2)."""
    centre_momentum: Annotated[float, Range(0, 1, open_most=True)] = 0.9
    """What the centre keeps of itself at each update."""
    freeze_last_layer_steps: Steps = 0
    """Updates before the prototypes move: one epoch as published for ViT-S, three for ViT-B."""
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
    watch_every_steps: Steps = 10
    """Steps between measurements of collapse: used prototypes, spread, effective rank; 0 measures none."""

    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    title: ClassVar[str] = "DINO"
    reads_image: ClassVar[bool] = False

    def classes(self, config: Any) -> int:
        return self.num_prototypes

    def corruptions(self, config: Any, source: Any) -> tuple[PathDraws, ...]:
        layers = config.model.shape_of("image").num_hidden_layers
        return (PathDraws(2 + self.local_crops, layers),) if self.stochastic_depth else ()

    def crops(self, config: Any, source: Any) -> dict[str, Crops]:
        large = Crops(size=config.model.image_size, transforms=(self.first_global, self.second_global))
        small = Crops(size=self.local_size, transforms=(self.local,) * self.local_crops)
        return {"global_crops": large, **({"local_crops": small} if self.local_crops else {})}

    def build(self, config: Any) -> Dino:
        """Builds the objective with its head for the model's image encoder."""
        return Dino(self, config.model.shape_of("image"), config.training.total_steps)

    def check(self, where: str, config: Any) -> None:
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


class Dino(Objective):
    """Mean, over every pair of a large crop that the teacher sees and another crop that the student sees, of
    the cross-entropy between their distributions over the prototypes.

    Reads no view of the family: it encodes the crops itself, in one pass per resolution.
    """

    kinds = DinoConfig.kinds
    needs = frozenset()
    metrics: ClassVar[Mapping[str, str]] = {"entropy": "teacher_entropy", "divergence": "divergence"}

    def __init__(self, config: DinoConfig, shape: Any, total_steps: int) -> None:
        super().__init__(config.weight)
        self.config, self.shape, self.total_steps = config, shape, total_steps
        self.head = DinoHead(
            shape.hidden_size, config.head_hidden_size, config.bottleneck_size, config.num_prototypes
        )

    def momentum(self, step: int) -> float:
        """Returns what the teacher keeps of itself at an update."""
        begin, end = self.config.teacher_momentum, self.config.teacher_momentum_end
        return along_cosine(begin, end, step / self.total_steps)

    def temperature(self, step: int) -> float:
        """Returns the teacher's temperature at an update."""
        begin, end = self.config.teacher_temperature, self.config.teacher_temperature_end
        return begin + (end - begin) * min(1.0, step / max(1, self.config.teacher_temperature_steps))

    def states(self, model: Any) -> dict[str, TrainingState]:
        centre = Centre(self.config.num_prototypes, self.config.centre_momentum)

        def targets(batches: Sequence[Batch]) -> list[Tensor]:
            temperature = self.temperature(batches[0].step)
            if self.config.balance == "sinkhorn":
                return balanced([batch["dino_outputs"] / temperature for batch in batches])
            return [((batch["dino_outputs"] - centre.mean) / temperature).softmax(-1) for batch in batches]

        networks = copy.deepcopy(model.image_encoder), copy.deepcopy(self.head)
        teacher = DinoTeacher(*networks, self.momentum, targets)
        watch = CollapseWatch(self.config.num_prototypes)
        return {"teacher": teacher, "centre": centre} | (
            {"watch": watch} if self.config.watch_every_steps else {}
        )

    def first_steps(self) -> dict[str, int]:
        return {"head.prototypes.weight": self.config.freeze_last_layer_steps}

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {}

    def model_parameters(self, model: Any) -> set[str]:
        return model.parameters_of("image", read_directly=True)

    def flops(self, model: Any, batch: Batch) -> float:
        """Counts the student's crops, and the teacher's, which have no backward pass, as a third."""
        large = image_flops(self.shape, self.shape.image_size) + self.head.flops
        small = image_flops(self.shape, self.config.local_size) + self.head.flops
        return batch.size * (2 * large * (1 + 1 / 3) + self.config.local_crops * small)

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        sizes = [batch[name] for name in ("global_crops", "local_crops") if name in batch]
        paths = self._paths(batch, model.image_encoder.cls_token.dtype)
        first = torch.cat(
            [
                model.image_encoder.first_tokens(crops.flatten(0, 1), own)
                for crops, own in zip(sizes, paths, strict=False)
            ]
        )
        scores = (self.head(first) / self.config.student_temperature).log_softmax(-1)
        parts = scores.split([crops.shape[0] * crops.shape[1] for crops in sizes])
        large, *small = (part.unflatten(0, crops.shape[:2]) for part, crops in zip(parts, sizes, strict=True))
        targets = batch["dino_targets"]
        loss, pairs = -(targets * large.flip(1)).sum(), targets.shape[1]
        if small:
            loss = loss - (targets.sum(1) * small[0].sum(1)).sum()
            pairs += targets.shape[1] * small[0].shape[1]
        loss = loss / pairs
        entropy = -torch.xlogy(targets, targets).sum() / targets.shape[1]
        metrics = {"entropy": entropy, "divergence": loss.detach() - entropy}
        return Loss(loss, self.count(batch), metrics, self._statistics(batch))

    def _paths(self, batch: Batch, dtype: torch.dtype) -> list[Tensor | None]:
        """Returns the factors of stochastic depth for the global crops and for the local ones: [b*a L 2]."""
        if "path_draws" not in batch:
            return [None, None]
        draws = batch["path_draws"]
        rates = torch.linspace(0, self.config.stochastic_depth, draws.shape[2], device=draws.device)[:, None]
        factors = ((draws >= rates) / (1 - rates)).to(dtype)
        return [factors[:, :2].flatten(0, 1), factors[:, 2:].flatten(0, 1)]

    @torch.no_grad()
    def _statistics(self, batch: Batch) -> dict[str, Tensor]:
        """Sums what the centre needs and, at steps where collapse is measured, what the watch needs."""
        outputs, targets = batch["dino_outputs"], batch["dino_targets"].flatten(0, 1)
        # a mean over the views of an image, a sum over images
        found = {"outputs": outputs.mean(1).sum(0)}
        every = self.config.watch_every_steps
        if every and batch.step % every == 0:
            features = batch["dino_features"].flatten(0, 1).double()  # for differences of near equals
            likeliest = torch.zeros_like(targets[0]).index_add_(
                0, targets.argmax(-1), torch.ones_like(targets[:, 0])
            )
            found |= {
                "probabilities": targets.sum(0),
                "likeliest": likeliest,
                "features": features.sum(0),
                "products": features.T @ features,
                "entropy": -torch.xlogy(targets, targets).sum(),
                "crops": torch.full((), float(len(features)), device=features.device),
            }
        return found
