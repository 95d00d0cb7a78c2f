"""CLIP's capabilities for evaluation and inference: image and text vectors in one space.

Shapes follow flava_ds/evaluation/protocols.py. Nothing here needs a training batch or keeps a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.families.clip.tunable import ClipStates
from flava_ds.families.offers import Projector
from flava_ds.layers.words import pack
from flava_ds.training.task import Task

LACKS = {
    "Matcher": "CLIP has no pair encoder, hence no matching head",
    "Scorer": "CLIP trains no masked objective",
    "Tokens": "CLIP has no pair encoder, hence no pair sequence",
}
"""Capabilities that CLIP lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a CLIP with its objectives, and what it lacks: protocol -> reason."""
    return (ClipEmbedder(module.model), ClipStates(module.model)), dict(LACKS)


class ClipEmbedder(Projector):
    """Image and text vectors in the contrastive space, and the features before the projection.

    Source: Radford et al. 2021, section 3: linear probes read the features before the projection.
    """

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.logit_scale.device

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images: [b c H W] uint8 -> [b d], in the model's dtype."""
        return self.model.image_encoder(pixels.to(self.device)).first()

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids, special tokens included: -> [b d], in the model's dtype."""
        return self.model.text_encoder.last_states(pack(texts, self.device))
