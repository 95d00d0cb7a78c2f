"""A stranger's pooled objective for FLAVA: every image with every text of a step is one yes-or-no question
(SigLIP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from stranger_runs import STEPS, prove, split, stranger_config
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Between
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.objectives.base import Features, PooledObjective, of_all_ranks
from flava_ds.report.page import write_report


@dataclass(frozen=True, kw_only=True)
class SigmoidConfig(ObjectiveConfig, type="sigmoid_pairs"):
    """The sigmoid loss."""

    scale: Annotated[float, Between(0, 10)] = 2.0
    bias: Annotated[float, Between(-10, 10)] = -3.0

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Every image with every text"

    def build(self, config: Any) -> SigmoidPairs:
        return SigmoidPairs(self)


class SigmoidPairs(PooledObjective):
    """Binary cross-entropy of all image-text pairs of a step, over its images.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
    """

    kinds = SigmoidConfig.kinds
    needs = frozenset({"image", "text"})
    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy", "spread": "spread"}

    def __init__(self, config: SigmoidConfig) -> None:
        super().__init__(config.weight)
        self.scale, self.bias = (
            nn.Parameter(torch.tensor([config.scale])),
            nn.Parameter(torch.tensor([config.bias])),
        )

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return model.embedding_rows(batch)

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        samples = {
            "image": model.image_embeddings(hidden["image"]),
            "text": model.text_embeddings(hidden["text"]),
        }
        return Features(samples, {"scale": self.scale.exp(), "bias": self.bias})

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        image = features.samples["image"]
        text, first = of_all_ranks(features.samples["text"])
        logits = image @ text.t() * features.shared["scale"] + features.shared["bias"]
        own = torch.arange(image.shape[0], device=image.device)
        signs = torch.full_like(logits, -1.0).index_put(
            (own, own + first), torch.ones((), device=image.device)
        )
        found = logits.detach()
        correct = (found.argmax(1) == own + first).sum().float()
        return -F.logsigmoid(signs * logits).sum(), {"correct": correct, "spread": found.std(1).sum()}

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int]:
        return (4 * global_batch * model.config.projection_dim,)

    def model_parameters(self, model: Any) -> set[str]:
        projections = {name for name in model.contrastive_parameters() if name != "logit_scale"}
        return super().model_parameters(model) | projections


@pytest.mark.distributed
@pytest.mark.slow
def test_a_pooled_objective_is_exact_under_accumulation(run_ranks, tmp_path):
    config = stranger_config(tmp_path, name="sigmoid", objectives={"sigmoid": SigmoidConfig()})
    curve = prove(run_ranks, config)
    assert set(curve[0]) == {
        "step",
        "lr",
        "grad_norm",
        "loss/sigmoid",
        "accuracy/sigmoid",
        "metric/spread/sigmoid",
    }
    losses = [line["loss/sigmoid"] for line in curve]
    assert len(set(losses)) == STEPS and 0 < min(losses)
    page = write_report(split(config, "alone_1", "zero1", 1).run_path).read_text(encoding="utf-8")
    told = f"training loss from {losses[0]:.2f} to {losses[-1]:.2f} nats over {STEPS} logged steps"
    assert f"<strong>{SigmoidConfig.title}</strong>" in page and f"{SigmoidConfig.title}: {told}" in page
