"""Copies of a CLIP's towers to fine-tune.

They satisfy protocols of flava_ds/evaluation/protocols.py, which this module does not import.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.families.clip.model import Clip, ImageTower, TextTower
from flava_ds.families.offers import TunableImages
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.words import pack


class ClipStates:
    """Gives copies of the towers to fine-tune."""

    def __init__(self, model: Clip) -> None:
        self.model = model

    def text_states(self) -> TunableTower:
        """Returns a copy of the text tower."""
        return TunableTower(self.model.text_encoder)

    def image_states(self, scale: float = 1.0) -> TunableImages:
        """Returns a copy of the image tower, for images `scale` times as large."""
        tower, edge = enlarged(self.model, scale)
        return TunableImages(tower, first_states, width=self.model.config.image.hidden_size, image_size=edge)

    def pair_states(self, scale: float = 1.0) -> TunableTowers:
        """Returns a copy of both towers, for images `scale` times as large."""
        return TunableTowers(self.model, scale)


class TunableTower(nn.Module):
    """A text's last state after the final LayerNorm."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.width = tower.positions.shape[1]
        self.tower = copy.deepcopy(tower).requires_grad_(True)

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        return self.tower.last_states(pack(texts, self.tower.positions.device))


class TunableTowers(nn.Module):
    """The image's state beside the text's: [b d_image + d_text].

    Source: FLAVA, section 4.1: CLIP's baselines get the same head on the two vectors side by side.
    """

    def __init__(self, model: Clip, scale: float) -> None:
        super().__init__()
        self.text = TunableTower(model.text_encoder)
        self.image, self.image_size = enlarged(model, scale)
        self.width = self.text.width + model.config.image.hidden_size

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        assert pixels is not None  # these are pairs
        image = first_states(self.image, pixels.to(self.image.positions.device))
        return torch.cat([image, self.text(texts)], dim=1)


def first_states(tower: ImageTower, pixels: Tensor) -> Tensor:
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
