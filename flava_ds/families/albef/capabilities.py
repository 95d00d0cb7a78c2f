"""ALBEF's capabilities for evaluation: vectors, match log odds, masked predictions, states to fine-tune.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.families.albef.model import Albef
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.families.offers import Projector, Tunable, WordReading, for_pairs
from flava_ds.layers.patches import enlarged_edge
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import pack
from flava_ds.objectives.hard_matching import HardMatchingConfig
from flava_ds.training.task import Task

LACKS = {
    "TextStates": "half of ALBEF's layers read texts alone, and these are not fine-tuned by themselves",
}
"""Capabilities that ALBEF lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of an ALBEF with its objectives, and what it lacks: protocol -> reason."""
    part = AlbefPart(module.model)
    parts, lacks = for_pairs(module, config, HardMatchingConfig, part.first, part.read)
    return (AlbefEmbedder(module.model), *parts), LACKS | lacks


class AlbefPart:
    """Runs an ALBEF on images and texts, without a training batch."""

    def __init__(self, model: Albef) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.temperature.device

    def fused(self, image: Packed, texts: Sequence[np.ndarray], *, first_only: bool = False) -> Encoded:
        """Encodes b arrays of ids with the states of an image each; with `first_only`, the last layer
        finishes only the texts' CLS.
        """
        text = self.model.text_encoder.encode_texts(pack(texts, self.device)).packed
        return self.model.fusion(text, image, text.first_rows if first_only else None)

    def first(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the CLS of the texts with images [b c H W], which are encoded once: a [b d] per pairing."""
        image = self.model.image_states(pixels.to(self.device))
        return [self.fused(image, texts, first_only=True).first() for texts in pairings]

    def read(self, head: nn.Module, pixels: Tensor, texts: Sequence[np.ndarray]) -> WordReading:
        """Encodes images with masked texts, for `head` to predict the words."""
        image = self.model.image_states(pixels.to(self.device))
        return WordReading(self.fused(image, texts), self.model, head)


class AlbefEmbedder(AlbefPart, Projector):
    """Image and text vectors in the contrastive space, the CLS states before the projection, and copies to
    fine-tune.
    """

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images: [b c H W] uint8 -> [b d], in the model's dtype."""
        return self.model.image_encoder.first_tokens(pixels.to(self.device))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids, special tokens included: -> [b d], in the model's dtype."""
        return self.model.text_encoder.first_states(texts)

    def image_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of the image encoder for images `scale` times as large: their CLS."""
        shape, encoder = self.model.config.image, copy.deepcopy(self.model.image_encoder)

        def states(encoder: ImageEncoder, _: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
            return encoder.first_tokens(pixels)

        edge, encoder = enlarged_edge(shape, scale), encoder.requires_grad_(True)
        return Tunable(states, width=shape.hidden_size, image_size=edge, encoder=encoder)

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy for images `scale` times as large: the CLS of each text with its image. Positions
        are interpolated in each pass; the model stays unchanged.

        Source: Li et al. 2021, section 4, and its code. VQA's answer decoder and SNLI-VE's head of two layers
        are left out: tasks put the heads that they have on this state.
        """
        model: Albef = copy.deepcopy(self.model).requires_grad_(True)
        for part in (model.image_projection, model.text_projection, model.temperature):
            part.requires_grad_(False)  # no state depends on them

        def states(model: Albef, texts: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
            return AlbefPart(model).first(pixels, [texts])[0]

        edge = enlarged_edge(model.config.image, scale)
        return Tunable(states, width=model.config.fusion.hidden_size, image_size=edge, model=model)
