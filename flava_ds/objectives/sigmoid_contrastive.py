"""Sigmoid contrastive loss: every image with every text of the step is one question, do they belong together.

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (SigLIP), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from flava_kernels.eager import once_differentiable
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Features, of_all_ranks
from flava_ds.objectives.global_contrastive import Contrastive, ContrastiveConfig

CHUNK_BYTES = 2**26
"""Size of the part of the logits that is computed at a time; all of them are never held."""


@dataclass(frozen=True, kw_only=True)
class SigmoidContrastiveConfig(ContrastiveConfig, type="sigmoid_contrastive"):
    """Image-text loss of SigLIP over the batch of all ranks: a sigmoid for each image with each text.

    The published scale begins at 10, `model.logit_scale_init` 2.3026, and is not clamped; open_clip clamps it
    as the default does.
    """

    logit_bias_init: Annotated[float, AtLeast(-100), AtMost(100)] = -10.0
    """What is added to every logit at the start; it is learned. As published, it makes up for the many pairs
    that do not match."""

    title: ClassVar[str] = "Sigmoid contrastive"

    def build(self, config: Any) -> SigmoidContrastive:
        """Builds the objective with its bias. Projections and scale belong to the model."""
        return SigmoidContrastive(self)


class SigmoidContrastive(Contrastive):
    """Binary cross-entropy of the matched samples' texts with all images of a step, per such text.

    The text of a mismatched sample is in the batch twice and takes no part: as a negative it would push away
    the image that it belongs to.
    """

    def __init__(self, config: SigmoidContrastiveConfig) -> None:
        super().__init__(config)
        self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias_init]))

    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        """Adds `logit_bias` [1] to what the global loss reads."""
        found = super().features(model, hidden, batch)
        shared = {**found.shared, "logit_bias": at_least_fp32(self.logit_bias)}
        return Features(found.samples, shared, found.constants)

    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        texts, first = of_all_ranks(features.samples["text"])
        matched, _ = of_all_ranks(features.constants["matched"])
        scale, bias = features.shared["log_scale"].exp(), features.shared["logit_bias"]
        loss, correct = _SigmoidPairs.apply(features.samples["image"], texts, scale, bias, matched, first)
        return loss, {"correct": correct}

    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes in fp32: text features and their gradients, and the mask of matches."""
        features = 4 * global_batch * model.config.projection_dim
        return features, features, 4 * global_batch


class _SigmoidPairs(torch.autograd.Function):
    """Sums -log sigmoid(y (scale image text + bias)) over these images and all matched texts, y being 1 for
    an image's own text, else -1.

    The loss is a sum over pairs, so the forward pass computes the gradients along with it, chunk by chunk of
    the images, and the backward pass only scales them.

    Shapes:
        image    [b r]
        texts    [g r]  of all ranks
        scale    [1]
        bias     [1]
        matched  [g]    1 where the text belongs to its image, else 0
        first           the text of the first image
        returns  scalar, and the number of matched images whose own text has the largest logit, the first such
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, matched: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        scaled, matched = image * scale, matched.to(image.dtype)
        read = texts * matched[:, None]
        loss, correct, d_bias = (image.new_zeros(()) for _ in range(3))
        d_image, d_texts = torch.empty_like(image), torch.zeros_like(texts)
        own = torch.arange(first, first + len(image), device=image.device)
        for rows in torch.arange(len(image)).split(max(1, CHUNK_BYTES // texts[:, :1].nbytes)):
            chunk = slice(int(rows[0]), int(rows[-1]) + 1)
            logits = scaled[chunk] @ texts.T
            # before the bias is added, which takes digits from them
            correct += ((logits.argmax(1) == own[chunk]) * matched[own[chunk]]).sum()
            # y times the logit: negated everywhere, and once more where image and text belong together
            signed = logits.add_(bias).neg_()
            signed.diagonal(first + chunk.start).neg_()
            loss -= F.logsigmoid(signed).sum(0) @ matched
            gradient = signed.neg_().sigmoid_()
            gradient.diagonal(first + chunk.start).neg_()
            torch.mm(gradient, read, out=d_image[chunk])
            d_texts.addmm_(gradient.T, scaled[chunk])
            d_bias += gradient.sum(0) @ matched
        d_texts *= matched[:, None]
        ctx.save_for_backward(d_image * scale, d_texts, (d_image * image).sum().view(1), d_bias.view(1))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return *(grad * found for found in ctx.saved_tensors), None, None
