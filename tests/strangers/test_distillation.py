"""A stranger's objective for FLAVA: what an averaged encoder sees in a picture is to be told from two noisy
crops of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stranger_runs import STEPS, numbers_of, prove, split, stranger_config
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Between
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.layers.work import encoder_flops
from flava_ds.objectives.base import Loss, OfCrops
from flava_ds.objectives.state import EmaTeacher, TrainingState

CROPS, NOISE_STREAM = 2, 91


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(ObjectiveConfig, type="crops_of_a_teacher"):
    """Cosine distance between a student's features of crops and a teacher's of the picture."""

    momentum: Annotated[float, Between(0, 1)] = 0.9
    noise: Annotated[float, Between(0, 255)] = 20.0

    kinds: ClassVar[frozenset[str]] = frozenset({"image"})

    def corruptions(self, config: Any, source: Any) -> tuple[NoisyCrops]:
        return (NoisyCrops(self.noise),)

    def build(self, config: Any) -> Distillation:
        return Distillation(self, config.model.shape_of("image"))


@dataclass(frozen=True)
class NoisyCrops:
    """Adds

    Shapes:
        crops  [b a c S S]  uint8, moved by up to a quarter of the edge, with noise
    """

    noise: float

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        pictures = draft.views["pixel_values"].numpy()
        draws = uniforms(draft.seeds, 2 * CROPS, stream=NOISE_STREAM).reshape(-1, CROPS, 2)
        shifts = np.floor(draws * pictures.shape[-1] / 4).astype(int)
        moved = np.stack(
            [
                [np.roll(own, s, axis=(1, 2)) for s in crops]
                for own, crops in zip(pictures, shifts, strict=True)
            ]
        )
        noise = uniforms(draft.seeds, moved[0].size, stream=NOISE_STREAM + 1).reshape(moved.shape)
        return {"crops": np.clip(moved + self.noise * (2 * noise - 1), 0, 255).astype(np.uint8)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return CROPS * 3 * plan.views["pixel_values"] ** 2


class Teacher(EmaTeacher):
    """Adds the teacher's features of the whole pictures, of which a centre is taken away."""

    def __init__(self, encoder: nn.Module, momentum: float, centre: Centre) -> None:
        super().__init__(encoder, "model.image_encoder.", lambda step: momentum)
        self.centre = centre

    def complete(self, batch: Batch) -> Batch:
        if "crops" not in batch:
            return batch
        (encoded,) = self.network(batch["pixel_values"])
        return batch.having(teacher_features=encoded.first().float(), centre=self.centre.mean.clone())


class Centre(TrainingState):
    """The running mean of the teacher's features."""

    def __init__(self, width: int) -> None:
        self.mean = torch.zeros(width)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def begin(self, name: str, engine: Any) -> None:
        self.mean = self.mean.to(engine.world.device)

    def after_update(self, step: int, engine: Any, statistics: Mapping[str, Tensor]) -> None:
        if "features" in statistics:
            self.mean.lerp_(statistics["features"] / statistics["count"], 0.1)


class Distillation(OfCrops):
    """Compares each crop's feature with the teacher's."""

    kinds = DistillationConfig.kinds
    metrics: ClassVar[Mapping[str, str]] = {"norm": "teacher_norm"}

    def __init__(self, config: DistillationConfig, shape: VisionEncoderConfig) -> None:
        super().__init__(config.weight)
        self.config, self.shape = config, shape
        self.predictor = nn.Linear(shape.hidden_size, shape.hidden_size)

    def states(self, model: Any) -> dict[str, TrainingState]:
        centre = Centre(self.shape.hidden_size)
        return {
            "teacher": Teacher(copy.deepcopy(model.image_encoder), self.config.momentum, centre),
            "centre": centre,
        }

    def flops(self, model: Any, batch: Batch) -> float:
        return encoder_flops(self.shape, [1 + self.shape.num_patches] * (CROPS * batch.size))

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        (encoded,) = model.image_encoder(batch["crops"].flatten(0, 1))
        told = self.predictor(encoded.first()).float().unflatten(0, (-1, CROPS))
        features = batch["teacher_features"]
        cosine = F.cosine_similarity(told, (features - batch["centre"])[:, None], dim=-1)
        norms, seen = features.norm(dim=-1).sum(), features.sum(0)
        return Loss((1 - cosine).mean(1).sum(), self.count(batch), {"norm": norms}, {"features": seen})


@pytest.mark.distributed
@pytest.mark.slow
def test_an_objective_with_a_teacher_a_centre_and_its_own_corruption(run_ranks, tmp_path):
    config = stranger_config(tmp_path, name="crops", kind="image", objectives={"crops": DistillationConfig()})
    curve = prove(run_ranks, config)
    assert set(curve[0]) == {"step", "lr", "grad_norm", "loss/crops", "metric/teacher_norm/crops"}
    assert all(0 < line["loss/crops"] < 2 and line["metric/teacher_norm/crops"] > 0 for line in curve)
    numbers = numbers_of(split(config, "zero3_whole", "zero3", 1))
    averages = {
        name.removeprefix("average.crops.teacher/"): own
        for name, own in numbers.items()
        if name.startswith("average.")
    }
    encoder = {
        name.removeprefix("weight/"): own
        for name, own in numbers.items()
        if name.startswith("weight/model.image_encoder.")
    }
    assert averages.keys() == encoder.keys() and len(encoder) > 20
    patches = "model.image_encoder.patch_embedding.weight"
    assert not torch.equal(averages[patches], encoder[patches])
    assert float(numbers["state/crops.centre/mean"].abs().max()) > 0 and len(curve) == STEPS
