"""Copies of a CLIP's towers to fine-tune.

They satisfy protocols of flava_ds/evaluation/protocols.py, which this module does not import.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.families.clip.model import Clip, TextTower
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.words import pack


class ClipStates:
    """Gives copies of the towers to fine-tune."""

    def __init__(self, model: Clip) -> None:
        self.model = model

    def text_states(self) -> TunableTower:
        """Returns a copy of the text tower."""
        return TunableTower(self.model.text_encoder)

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
        shape = model.config.image
        self.text, self.image = TunableTower(model.text_encoder), copy.deepcopy(model.image_encoder)
        self.width, self.image_size = self.text.width + shape.hidden_size, enlarged_edge(shape, scale)
        self.image.patch_embedding.image_size = self.image_size
        grid, table = self.image_size // shape.patch_size, self.image.positions.detach()
        if grid != shape.grid_size:
            self.image.positions = nn.Parameter(resized_positions(table, (grid, grid)))
        self.image.requires_grad_(True)

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        assert pixels is not None  # these are pairs
        image = self.image(pixels.to(self.image.positions.device)).first()
        return torch.cat([image, self.text(texts)], dim=1)
