"""CLIP's capabilities for evaluation: image and text vectors in one space, and towers to fine-tune.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.families.clip.model import Clip, ImageTower, TextTower
from flava_ds.families.offers import Projector, Tunable, side_by_side
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.words import pack
from flava_ds.training.task import Task

LACKS = {
    "Matcher": "CLIP has no pair encoder, hence no matching head",
    "Scorer": "CLIP trains no masked objective",
}
"""Capabilities that CLIP lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a CLIP with its objectives, and what it lacks: protocol -> reason."""
    return (ClipEmbedder(module.model),), dict(LACKS)


class ClipEmbedder(Projector):
    """Image and text vectors in the contrastive space, and the features before the projection.

    Source: Radford et al. 2021, section 3: linear probes read the features before the projection.
    """

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images: [b c H W] uint8 -> [b d], in the model's dtype."""
        return first_states(self.model.image_encoder, [], pixels.to(self.model.logit_scale.device))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids, special tokens included: -> [b d], in the model's dtype."""
        return last_states(self.model.text_encoder, texts)

    def text_states(self) -> Tunable:
        """Returns a copy of the text tower to fine-tune, for each text's last state after the LayerNorm."""
        tower = copy.deepcopy(self.model.text_encoder).requires_grad_(True)
        return Tunable(last_states, width=tower.positions.shape[1], tower=tower)

    def image_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of the image tower, for images `scale` times as large."""
        tower, edge = enlarged(self.model, scale)
        return Tunable(
            first_states, width=self.model.config.image.hidden_size, image_size=edge, encoder=tower
        )

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of both towers, for images `scale` times as large."""
        return side_by_side(self.text_states(), self.image_states(scale))


def last_states(tower: TextTower, texts: Sequence[np.ndarray], _: None = None) -> Tensor:
    """Returns the last states of b arrays of ids: -> [b d]."""
    return tower.last_states(pack(texts, tower.positions.device))


def first_states(tower: ImageTower, _: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
    """Returns the CLS of images: [b c H W] -> [b d]."""
    return tower(pixels).first()


def enlarged(model: Clip, scale: float) -> tuple[ImageTower, int]:
    """Returns a copy of the image tower for images `scale` times as large, and their edge in pixels: its
    positions are interpolated.
    """
    shape, tower = model.config.image, copy.deepcopy(model.image_encoder)
    tower.patch_embedding.image_size = edge = enlarged_edge(shape, scale)
    grid = edge // shape.patch_size
    if grid != shape.grid_size:
        tower.positions = nn.Parameter(resized_positions(tower.positions.detach(), (grid, grid)))
    return tower.requires_grad_(True), edge
