"""A stranger's pooled objective for FLAVA: pairs close together, and all texts of a step apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import torch
from stranger_runs import STEPS, prove, split, stranger_config
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Between
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.objectives.base import Features, PooledObjective, of_all_ranks
from flava_ds.report.page import write_report


@dataclass(frozen=True, kw_only=True)
class UniformityConfig(ObjectiveConfig, type="alignment_and_uniformity"):
    """Embeddings of a pair close together, and those of different pairs spread over the sphere."""

    sharpness: Annotated[float, Between(0, 10)] = 2.0

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Close pairs, spread out"

    @property
    def may_be_negative(self) -> bool:
        return True

    def build(self, config: Any) -> Uniformity:
        return Uniformity(self)


class Uniformity(PooledObjective):
    """Squared distance within a pair, plus the log of the mean kernel between its text and all texts.

    Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", section 4; the sharpness of the kernel is learned.
    """

    kinds = UniformityConfig.kinds
    needs = frozenset({"image", "text"})
    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy", "spread": "spread"}

    def __init__(self, config: UniformityConfig) -> None:
        super().__init__(config.weight)
        self.sharpness = nn.Parameter(torch.tensor([config.sharpness]))

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return model.embedding_rows(batch)

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        samples = {
            "image": model.image_embeddings(hidden["image"]),
            "text": model.text_embeddings(hidden["text"]),
        }
        return Features(samples, {"sharpness": self.sharpness.abs()})

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = features.samples["image"], features.samples["text"]
        texts, first = of_all_ranks(text)
        distances = 2 - 2 * text @ texts.t()
        uniformity = (-features.shared["sharpness"] * distances).logsumexp(1) - math.log(len(texts))
        own = torch.arange(len(image), device=image.device) + first
        correct = ((image @ texts.t()).detach().argmax(1) == own).sum().float()
        spread = distances.detach().mean(1).sum()
        return ((image - text).square().sum(1) + uniformity).sum(), {"correct": correct, "spread": spread}

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, int]:
        features = 4 * global_batch * model.config.projection_dim
        return features, features  # and their gradients

    def model_parameters(self, model: Any) -> set[str]:
        projections = {name for name in model.contrastive_parameters() if name != "logit_scale"}
        return super().model_parameters(model) | projections


@pytest.mark.distributed
@pytest.mark.slow
def test_a_pooled_objective_is_exact_under_accumulation(run_ranks, tmp_path):
    config = stranger_config(tmp_path, name="uniformity", objectives={"uniformity": UniformityConfig()})
    curve = prove(run_ranks, config)
    assert set(curve[0]) == {
        "step",
        "lr",
        "grad_norm",
        "loss/uniformity",
        "accuracy/uniformity",
        "metric/spread/uniformity",
    }
    losses = [line["loss/uniformity"] for line in curve]
    assert len(set(losses)) == STEPS
    page = write_report(split(config, "alone_1", "zero1", 1).run_path).read_text(encoding="utf-8")
    told = f"training loss from {losses[0]:.2f} to {losses[-1]:.2f} nats over {STEPS} logged steps"
    assert (
        f"<strong>{UniformityConfig.title}</strong>" in page and f"{UniformityConfig.title}: {told}" in page
    )
