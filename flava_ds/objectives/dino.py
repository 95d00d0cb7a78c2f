"""Self-distillation without labels (DINO): a student matches, on small crops of a image, what an averaged
teacher says of large ones.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers"; KoLeo and Sinkhorn as
in Oquab et al. 2023, "DINOv2"; masked patches as in Zhou et al. 2021, "iBOT".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Above, AtLeast, AtMost, Between, Range, Steps
from flava_ds.data.plan import Corruption
from flava_ds.errors import ConfigError
from flava_ds.layers.work import finishing_flops
from flava_ds.objectives.base import Features, Loss
from flava_ds.objectives.dino_head import DinoHead
from flava_ds.objectives.dino_masks import CropMasks
from flava_ds.objectives.dino_states import Centre, CollapseWatch, DinoTeacher
from flava_ds.objectives.multi_crop import MultiCrop, MultiCropConfig, Seen, Spread
from flava_ds.objectives.sinkhorn import balanced
from flava_ds.objectives.spreading import koleo
from flava_ds.objectives.state import TrainingState

Temperature = Annotated[float, Above(0), AtMost(100)]
Weight = Annotated[float, AtLeast(0), AtMost(10**6)]


@dataclass(frozen=True, kw_only=True)
class DinoConfig(MultiCropConfig, type="dino"):
    """DINO on images, with the published numbers of ViT-S; recipes say where others are."""

    num_prototypes: Annotated[int, AtLeast(2), AtMost(2**24)] = 65_536
    """Classes that teacher and student agree on; some 1,000 to 8,000 for small data."""
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    """At the start. Lower sharpens more; above 0.07 is unstable."""
    teacher_temperature_end: Temperature = 0.04
    """After teacher_temperature_steps, which it reaches on a straight line."""
    teacher_temperature_steps: Steps = 0
    balance: Literal["centre", "sinkhorn"] = "centre"
    """What keeps the teacher from saying the same of all images: a running centre that is taken away (as
    published), or Sinkhorn's iteration over all crops of a step (DINOv2)."""
    centre_momentum: Annotated[float, Range(0, 1, open_most=True)] = 0.9
    """What the centre keeps of itself at each update."""
    freeze_last_layer_steps: Steps = 0
    """Updates before the prototypes move: one epoch as published for ViT-S, three for ViT-B."""
    watch_every_steps: Steps = 10
    """Steps between measurements of collapse: used prototypes, spread, effective rank; 0 measures none."""
    koleo_weight: Weight = 0.0
    """Weight of a term that keeps each large crop away from the nearest of another image of the step (KoLeo;
    0.1 in DINOv2)."""
    patch_weight: Weight = 0.0
    """Weight of predicting the teacher's view of patches that the student does not see (iBOT, 1 there)."""
    masked_crops: Annotated[float, Between(0, 1)] = 0.5
    """Share of the large crops that are masked, if patch_weight is above 0."""
    masked_least: Annotated[float, Between(0, 1)] = 0.1
    """Share of a masked crop's patches that are masked, at least."""
    masked_most: Annotated[float, Between(0, 1)] = 0.5
    """The same, at most; drawn evenly between the two."""
    min_patches_per_block: Annotated[int, AtLeast(1), AtMost(2**20)] = 4
    """Patches in the smallest of the blocks that are masked."""

    title: ClassVar[str] = "DINO"

    def classes(self, config: Any) -> int:
        return self.num_prototypes

    def corruptions(self, config: Any, source: Any) -> tuple[Corruption, ...]:
        own = super().corruptions(config, source)
        return (*own, CropMasks(config.model.image.grid_size, self)) if self.patch_weight else own

    def build(self, config: Any) -> Dino:
        made = KoleoDino if self.koleo_weight else Dino
        return made(self, config.model.shape_of("image"), config.training.total_steps)

    @property
    def may_be_negative(self) -> bool:
        return self.koleo_weight > 0

    def check(self, where: str, config: Any) -> None:
        super().check(where, config)
        if self.masked_least > self.masked_most:
            raise ConfigError(
                f"{where}.masked_least {self.masked_least:g} is above masked_most {self.masked_most:g}; swap "
                "them"
            )


class Dino(MultiCrop):
    """Mean, over every pair of a large crop that the teacher sees and another crop that the student sees, of
    the cross-entropy between their distributions over the prototypes.

    With masks the student sees some large crops in part, and the same cross-entropy over each patch that it
    does not see is added: the mean over a crop's masked patches, then over all large crops.
    """

    metrics: ClassVar[Mapping[str, str]] = {"entropy": "teacher_entropy", "divergence": "divergence"}

    def __init__(self, config: DinoConfig, shape: Any, total_steps: int) -> None:
        super().__init__(config, shape, total_steps)
        self.config = config
        self.head = DinoHead(
            shape.hidden_size, config.head_hidden_size, config.bottleneck_size, config.num_prototypes
        )
        if config.patch_weight:
            self.metrics = {**self.metrics, "patch": "patch_loss"}  # type: ignore[misc]

    def temperature(self, step: int) -> float:
        """Returns the teacher's temperature at an update."""
        begin, end = self.config.teacher_temperature, self.config.teacher_temperature_end
        return begin + (end - begin) * min(1.0, step / max(1, self.config.teacher_temperature_steps))

    def states(self, model: Any) -> dict[str, TrainingState]:
        settings = (self.config.num_prototypes, self.config.centre_momentum)
        centres = {"dino_outputs": Centre(*settings)}
        if self.config.patch_weight:
            centres["patch_outputs"] = Centre(*settings, total="patch_outputs", count="patches")

        def targets(batches: Sequence[Batch], outputs: str) -> list[Tensor]:
            temperature = self.temperature(batches[0].step)
            if self.config.balance == "sinkhorn":
                return balanced([batch[outputs] / temperature for batch in batches])
            mean = centres[outputs].mean
            return [((batch[outputs] - mean) / temperature).softmax(-1) for batch in batches]

        networks = copy.deepcopy(model.image_encoder), copy.deepcopy(self.head)
        found: dict[str, TrainingState] = {
            "teacher": DinoTeacher(*networks, self.momentum, targets),
            "centre": centres["dino_outputs"],
        }
        if self.config.patch_weight:
            found["patch_centre"] = centres["patch_outputs"]
        if self.config.watch_every_steps:
            found["watch"] = CollapseWatch(self.config.num_prototypes)
        return found

    def first_steps(self) -> dict[str, int]:
        return {"head.prototypes.weight": self.config.freeze_last_layer_steps}

    def model_parameters(self, model: Any) -> set[str]:
        masks = {"image_encoder.mask_token"} if self.config.patch_weight else set()
        return super().model_parameters(model) | masks

    def flops(self, model: Any, batch: Batch) -> float:
        """Adds the last block's and the head's work on masked patches, of student and teacher."""
        patches = batch["crop_mask_rows"].shape[0] if "crop_mask_rows" in batch else 0
        of_patch = finishing_flops(self.shape) + self.head.flops
        return super().flops(model, batch) + patches * of_patch * (1 + 1 / 3)

    def scores(self, seen: Seen) -> Seen:
        """Returns the student's log probabilities over the prototypes, by one call of the head:
        [... d] -> [... K].
        """
        parts = {name: part for name, part in seen._asdict().items() if part is not None}
        flat = [part.flatten(0, -2) for part in parts.values()]
        scores = (self.head(torch.cat(flat)) / self.config.student_temperature).log_softmax(-1)
        split = scores.split([len(part) for part in flat])
        found = {
            name: own.unflatten(0, part.shape[:-1])
            for (name, part), own in zip(parts.items(), split, strict=True)
        }
        return seen._replace(**found)

    def matched(self, seen: Seen, batch: Batch) -> Loss:
        targets, (large, small, patches) = batch["dino_targets"], self.scores(seen)
        loss, pairs = -(targets * large.flip(1)).sum(), targets.shape[1]
        if small is not None:
            loss = loss - (targets.sum(1) * small.sum(1)).sum()
            pairs += targets.shape[1] * small.shape[1]
        loss = loss / pairs
        entropy = -torch.xlogy(targets, targets).sum() / targets.shape[1]
        metrics = {"entropy": entropy, "divergence": loss.detach() - entropy}
        if patches is not None:
            terms = -(batch["patch_targets"] * patches).sum(-1)
            hidden = (terms * batch["crop_mask_shares"]).sum() / targets.shape[1]
            metrics["patch"] = hidden.detach()
            loss = loss + self.config.patch_weight * hidden
        return Loss(loss, self.count(batch), metrics, self._statistics(batch))

    @torch.no_grad()
    def _statistics(self, batch: Batch) -> dict[str, Tensor]:
        """Sums what the centre needs and, at steps where collapse is measured, what the watch needs."""
        outputs, targets = batch["dino_outputs"], batch["dino_targets"].flatten(0, 1)
        # a mean over the views of an image, a sum over images
        found = {"outputs": outputs.mean(1).sum(0)}
        if "patch_outputs" in batch:
            patches = batch["patch_outputs"]
            found |= {"patch_outputs": patches.sum(0), "patches": patches.new_full((), len(patches))}
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


class KoleoDino(Spread, Dino):
    """Adds KoLeo over the CLS of the student's large crops, for both views apart."""

    metrics: ClassVar[Mapping[str, str]] = {**Dino.metrics, "koleo": "koleo"}

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        found = koleo(features.samples["first"]) + koleo(features.samples["second"])
        return self.config.koleo_weight * found, {"koleo": found.detach()}

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes in fp32: both views' features and their gradients."""
        return (4 * global_batch * self.shape.hidden_size,) * 4
