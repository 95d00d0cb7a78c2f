"""ALIGN's capabilities for evaluation: image and text vectors in one space, and towers to fine-tune.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.families.bert.model import BertEncoder
from flava_ds.families.offers import Projector, Tunable, side_by_side
from flava_ds.layers.efficientnet import EfficientNet
from flava_ds.training.task import Task

LACKS = {
    "Matcher": "ALIGN has no pair encoder, hence no matching head",
    "Scorer": "ALIGN trains no masked objective",
}
"""Capabilities that ALIGN lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of an ALIGN with its objectives, and what it lacks: protocol -> reason."""
    return (AlignEmbedder(module.model),), dict(LACKS)


class AlignEmbedder(Projector):
    """Image and text vectors in the contrastive space, and the features before them."""

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images: [b c H W] uint8 -> [b d], in the model's dtype."""
        return self.model.image_features(pixels.to(self.model.temperature.device))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids, special tokens included: -> [b d], in the model's dtype."""
        return self.model.text_encoder.first_states(texts)

    def text_states(self) -> Tunable:
        """Returns a copy of the text tower to fine-tune, for the CLS of each text."""
        encoder = copy.deepcopy(self.model.text_encoder).requires_grad_(True)
        return Tunable(cls_states, width=self.model.config.text.hidden_size, encoder=encoder)

    def image_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of the image tower to fine-tune, for images `scale` times as large."""
        tower = copy.deepcopy(self.model.image_encoder).requires_grad_(True)
        return Tunable(mean_states, width=tower.channels, image_size=self._edge(scale), encoder=tower)

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of both towers to fine-tune, for images `scale` times as large."""
        return side_by_side(self.text_states(), self.image_states(scale))

    def _edge(self, scale: float) -> int:
        return max(1, round(scale * self.model.config.image.image_size))


def cls_states(encoder: BertEncoder, texts: Sequence[np.ndarray], _: None = None) -> Tensor:
    """Returns the CLS of b arrays of ids: -> [b d]."""
    return encoder.first_states(texts)


def mean_states(tower: EfficientNet, _: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
    """Returns the mean over the grid of the tower's last states: [b c H W] -> [b d]."""
    return tower(pixels).mean((2, 3))
