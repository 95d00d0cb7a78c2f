"""Global contrastive loss: images against texts of all ranks and micro-batches, with full gradients.

Source: FLAVA, section 3.2; CLIP (Radford et al. 2021), section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from flava_kernels.contrastive import info_nce
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost, Below
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.layers.transformer import clamped
from flava_ds.objectives.base import Features, PooledObjective, sum_of_all_ranks, world_size


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(ObjectiveConfig):
    """What losses share that compare the images and texts of a step, scaled by the model's `logit_scale`."""

    logit_scale_max: Annotated[float, AtLeast(0), AtMost(10)] = 4.6052
    """Upper end of the clamp of the log-space scale (a factor of 100.003); the lower end is 0."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    ignores_padding: ClassVar[bool] = True

    def views(self, config: Any) -> tuple[str, ...]:
        return tuple(sorted(Contrastive.needs))


@dataclass(frozen=True, kw_only=True)
class GlobalContrastiveConfig(ContrastiveConfig, type="global_contrastive"):
    """Image-text contrastive loss over the batch of all ranks."""

    label_smoothing: Annotated[float, AtLeast(0), Below(1)] = 0.0
    """Share of each target that is spread evenly over all samples of the step, its own included."""

    title: ClassVar[str] = "Global contrastive"

    def build(self, config: Any) -> GlobalContrastive:
        """Builds the objective. The projections belong to the model, because evaluation needs them."""
        return GlobalContrastive(self)


class Contrastive(PooledObjective):
    """Compares the clean passes; what a comparison costs is a subclass's."""

    kinds = ContrastiveConfig.kinds
    needs = frozenset({"image", "text"})
    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy", "scale": "logit_scale"}

    def __init__(self, config: ContrastiveConfig):
        super().__init__(config.weight)
        self.scale_max = config.logit_scale_max

    def count(self, batch: Batch) -> int:
        return batch.listed("matched_rows")

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return model.embedding_rows(batch)

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        """Projects the image and text CLS of every sample into the contrastive space, L2-normalised.

        Shapes:
            image, text  [b r]
            log_scale    [1]    clamped
            matched      [b]    1 where the caption belongs to the image, else 0
        """
        image, text = model.image_embeddings(hidden["image"]), model.text_embeddings(hidden["text"])
        # padding in the list, PADDING_ROW, marks the element behind the last sample's
        matched = torch.zeros(batch.size + 1, device=image.device).index_fill(0, batch["matched_rows"], 1.0)
        scale = clamped(model.logit_scale, self.scale_max)
        return Features({"image": image, "text": text}, {"log_scale": scale}, {"matched": matched[:-1]})

    def metric_sums(self, features: Features, correct: Tensor) -> dict[str, Tensor]:
        """Returns the metrics' sums over this rank's matched samples, `correct` of which are ranked first."""
        scale = features.shared["log_scale"].detach().exp().squeeze().float()
        return {"correct": correct, "scale": scale * features.constants["matched"].sum()}

    def model_parameters(self, model: Any) -> set[str]:
        return super().model_parameters(model) | model.contrastive_parameters()


class GlobalContrastive(Contrastive):
    """Symmetric InfoNCE. Mismatched samples are not positives but remain negatives of the others."""

    def __init__(self, config: GlobalContrastiveConfig):
        super().__init__(config)
        self.config = config

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = features.samples["image"], features.samples["text"]
        scale, matched = features.shared["log_scale"], features.constants["matched"]
        loss, correct = info_nce(image, text, scale, matched)
        if self.config.label_smoothing:
            loss = loss + self.config.label_smoothing * smoothing(image, text, scale, matched)
        return loss, self.metric_sums(features, correct)

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes gathered in fp32: image features, text features, three numbers per sample.

        The three are row and column log-sum-exp and the mask of matches. Label smoothing adds up two vectors.
        """
        width = model.config.projection_dim
        features = 4 * global_batch * width
        means = (4 * 2 * width,) if self.config.label_smoothing else ()
        return features, features, 4 * global_batch * 3, *means


def smoothing(image: Tensor, text: Tensor, log_scale: Tensor, matched: Tensor) -> Tensor:
    """Returns what smoothed labels add to this rank's share of InfoNCE, per unit of smoothing.

    Cross-entropy with a target of (1 - e) onehot + e / g is lse - s_ii + e (s_ii - mean_j s_ij), and the mean
    of a sample's logits is its product with the mean of the other features over all ranks:
    sum_i m_i [s_ii - tau / 2 (u_i v + v_i u)]. Shapes are those of info_nce.
    """
    means = sum_of_all_ranks(torch.stack([image.sum(0), text.sum(0)]))
    of_images, of_texts = means / (image.shape[0] * world_size())
    own = (image * text).sum(1) - (image @ of_texts + text @ of_images) / 2
    return log_scale.exp().squeeze() * (matched * own).sum()
