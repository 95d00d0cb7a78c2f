"""Copies of a FLAVA's encoders to fine-tune: one state per text, per image, or per image and text.

They satisfy protocols of flava_ds/evaluation/protocols.py, which this module does not import.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from flava_ds.families.flava.capabilities import FlavaPart
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.families.flava.model import Flava
from flava_ds.families.flava.text_encoder import TextEncoder
from flava_ds.families.flava.views import View
from flava_ds.families.offers import Tunable
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.words import pack


class FlavaStates(FlavaPart):
    """Gives copies of the encoders to fine-tune."""

    def text_states(self) -> Tunable:
        """Returns a copy of the text encoder, for CLS_T after the final LayerNorm.

        Source: paper, section 4: GLUE is fine-tuned on the text encoder alone.
        """
        encoder = copy.deepcopy(self.model.text_encoder)
        ask_for_gradients(encoder)
        return Tunable(text_states, width=self.model.config.text.hidden_size, text_encoder=encoder)

    def image_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of the image encoder, for images `scale` times as large: CLS_I after the final
        LayerNorm."""
        encoder = copy.deepcopy(self.model.image_encoder)
        enlarge(encoder, scale)
        ask_for_gradients(encoder)
        if encoder.mask_token is not None:  # clean images have none
            encoder.mask_token.requires_grad_(False)
        edge = encoder.config.image_size
        return Tunable(image_states, width=encoder.config.hidden_size, image_size=edge, encoder=encoder)

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of the three encoders, for images `scale` times as large: CLS_M after the final
        LayerNorm, of clean images and texts.

        Source: paper, section 4: multimodal tasks are fine-tuned on the fused encoder's CLS.
        """
        model = enlarged(self.model, scale)
        ask_for_gradients(model)
        trained = model.parameters_of(View.MULTIMODAL, read_directly=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        width, edge = model.config.multimodal.hidden_size, model.config.image_size
        return Tunable(pair_states, width=width, image_size=edge, model=model)


def text_states(encoder: TextEncoder, texts: Sequence[np.ndarray], _: None = None) -> Tensor:
    """Returns CLS_T of each text; the last block finishes no other row."""
    packed = pack(texts, next(encoder.parameters()).device)
    first = packed.cu_seqlens[:-1].long()
    [encoded] = encoder([packed.ids], packed.cu_seqlens, packed.max_seqlen, keep=[first])
    return encoded.rows(first)


def image_states(encoder: ImageEncoder, _: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
    """Returns CLS_I of each image."""
    return encoder.first_tokens(pixels)


def pair_states(model: Flava, texts: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
    """Returns CLS_M of each pair; the last block finishes no other row."""
    part = FlavaPart(model)
    packed = pack(texts, part.device)
    layout, image, text = part.layout(packed), part.encode_images(pixels), part.encode_texts(packed)
    first = layout.cu_seqlens[:-1].long()
    return model.fuse(image.packed, text.packed, layout, keep=first).rows(first)


def ask_for_gradients(module: nn.Module) -> None:
    """Turns on gradients except for the poolers, which nothing reads."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("pooler" not in name.split("."))


def enlarged(model: Flava, scale: float) -> Flava:
    """Returns a copy of a FLAVA for images `scale` times as large: its positions are interpolated."""
    copied = copy.deepcopy(model)
    enlarge(copied.image_encoder, scale)
    copied.config = dataclasses.replace(model.config, image=copied.image_encoder.config)
    return copied


def enlarge(encoder: ImageEncoder, scale: float) -> None:
    """Turns an encoder into one of images `scale` times as large."""
    image = encoder.config
    edge = enlarged_edge(image, scale)
    if edge != image.image_size:
        larger = dataclasses.replace(image, image_size=edge)
        encoder.config, encoder.patch_embedding.image_size = larger, edge
        table = resized_positions(encoder.position_embeddings.detach(), (larger.grid_size, larger.grid_size))
        encoder.position_embeddings = nn.Parameter(table)
