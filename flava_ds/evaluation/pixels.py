"""A model that has learned nothing and keeps everything: images as their own features, which trained features
are compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.evaluation.frozen_model import Described, FrozenModel
from flava_ds.evaluation.shares import Share

EDGE = 32
"""Pixels along one edge, whatever a model reads."""


def pixel_vectors(pixels: Tensor) -> Tensor:
    """Subtracts each image's mean and normalises: [N c H W] uint8 -> [N c*H*W] fp32."""
    vectors = pixels.flatten(1).float()
    return F.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1)


class Pixels:
    """The one capability of raw pixels."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """Returns the pixels as vectors: [b c H W] uint8 -> [b c*H*W] fp32."""
        return pixel_vectors(pixels)


def pixel_model(tokenizer: WordPieceTokenizer, share: Share | None = None) -> FrozenModel:
    """Returns raw pixels as a model, for tasks that need image features alone; they compute on the CPU."""
    return FrozenModel(
        Described("raw pixels", "none"),
        ((Pixels(),), {}),
        tokenizer,
        image_size=EDGE,
        most_tokens={},
        device=torch.device("cpu"),
        share=share,
    )
