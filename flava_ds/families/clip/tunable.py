"""Copies of a CLIP's towers to fine-tune.

They satisfy protocols of flava_ds/evaluation/protocols.py, which this module does not import.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from flava_ds.families.clip.model import Clip, ImageTower, TextTower
from flava_ds.families.offers import Tunable, side_by_side
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.words import pack


class ClipStates:
    """Gives copies of the towers to fine-tune."""

    def __init__(self, model: Clip) -> None:
        self.model = model

    def text_states(self) -> Tunable:
        """Returns a copy of the text tower, for each text's last state after the final LayerNorm."""
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
