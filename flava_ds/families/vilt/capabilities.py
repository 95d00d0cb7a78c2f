"""ViLT's capabilities for evaluation: match log odds, masked predictions, states to fine-tune.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from flava_ds.families.offers import Tunable, WordReading, for_pairs
from flava_ds.families.vilt.model import Vilt, layout_of
from flava_ds.layers.pairs import SequenceLayout
from flava_ds.layers.patches import enlarged_edge
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import pack
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.training.task import Task

LACKS = dict.fromkeys(
    ("ImageFeatures", "TextFeatures", "Embedder", "TextStates", "ImageStates"),
    "ViLT reads an image and a text together, neither alone",
)
"""Capabilities that ViLT lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a ViLT with its objectives, and what it lacks: protocol -> reason."""
    part = ViltPart(module.model)
    parts, lacks = for_pairs(module, config, ImageTextMatchingConfig, part.pooled, part.read)
    return (part, *parts), LACKS | lacks


class ViltPart:
    """Runs a ViLT on images and texts, without a training batch, and gives copies of it to fine-tune."""

    def __init__(self, model: Vilt) -> None:
        self.model = model

    def encode(
        self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]], *, first_only: bool = False
    ) -> list[tuple[Encoded, SequenceLayout]]:
        """Encodes images with one text each, for each of several pairings; patches are embedded once.

        With `first_only`, the last block finishes only the texts' CLS.

        Shapes:
            pixels    [b c H W]  uint8
            pairings  each b arrays of ids
        """
        device = self.model.cls_token.device
        image, found = self.model.embed_images(pixels.to(device)), []
        for texts in pairings:
            packed = pack(texts, device)
            layout = layout_of(packed, image[1].shape[1])
            keep = layout.text_starts if first_only else None
            found.append((self.model.encode_pairs(image, packed, keep), layout))
        return found

    def pooled(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the pooled CLS of the texts: one [b d] for each pairing."""
        encoded = self.encode(pixels, pairings, first_only=True)
        return [self.model.pooled(own.rows(layout.text_starts)) for own, layout in encoded]

    def read(self, head: nn.Module, pixels: Tensor, texts: Sequence[np.ndarray]) -> WordReading:
        """Encodes images with masked texts, for `head` to predict the words."""
        [(encoded, layout)] = self.encode(pixels, [texts])
        return WordReading(encoded, self.model, head, layout.text_rows)

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy for images `scale` times as large, or as large as `max_patches` allows: the pooled
        CLS of each text with its image. Positions are interpolated in each pass.

        Source: Kim et al. 2021, section 4.3, and its code.
        """
        image, model = self.model.config.image, copy.deepcopy(self.model).requires_grad_(True)
        edge = min(enlarged_edge(image, scale), math.isqrt(image.max_patches) * image.patch_size)

        def states(model: Vilt, texts: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
            return ViltPart(model).pooled(pixels, [texts])[0]

        return Tunable(states, width=image.hidden_size, image_size=edge, model=model)
