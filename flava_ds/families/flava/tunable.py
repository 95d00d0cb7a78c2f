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
from flava_ds.families.offers import TunableImages
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.words import pack


class FlavaStates(FlavaPart):
    """Gives copies of the encoders to fine-tune."""

    def text_states(self) -> TunableTexts:
        """Returns a copy of the text encoder."""
        return TunableTexts(self.model)

    def image_states(self, scale: float = 1.0) -> TunableImages:
        """Returns a copy of the image encoder, for images `scale` times as large: CLS_I after the final
        LayerNorm."""
        encoder = copy.deepcopy(self.model.image_encoder)
        enlarge(encoder, scale)
        ask_for_gradients(encoder)
        if encoder.mask_token is not None:  # clean images have none
            encoder.mask_token.requires_grad_(False)
        config = encoder.config
        return TunableImages(
            encoder, ImageEncoder.first_tokens, width=config.hidden_size, image_size=config.image_size
        )

    def pair_states(self, scale: float = 1.0) -> TunablePairs:
        """Returns a copy of the three encoders, for images `scale` times as large."""
        return TunablePairs(enlarged(self.model, scale))


class TunableTexts(nn.Module):
    """CLS_T after the final LayerNorm; the last block finishes no other row.

    Source: paper, section 4: GLUE is fine-tuned on the text encoder alone.
    """

    def __init__(self, model: Flava) -> None:
        super().__init__()
        self.width = model.config.text.hidden_size
        self.text_encoder: TextEncoder = copy.deepcopy(model.text_encoder)
        ask_for_gradients(self.text_encoder)

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        packed = pack(texts, next(self.parameters()).device)
        first = packed.cu_seqlens[:-1].long()
        [encoded] = self.text_encoder([packed.ids], packed.cu_seqlens, packed.max_seqlen, keep=[first])
        return encoded.rows(first)


class TunablePairs(nn.Module):
    """CLS_M after the final LayerNorm, of clean images and texts; the last block finishes no other row.

    Source: paper, section 4: multimodal tasks are fine-tuned on the fused encoder's CLS.
    """

    def __init__(self, model: Flava) -> None:
        """`model` is already a copy."""
        super().__init__()
        self.width, self.image_size = model.config.multimodal.hidden_size, model.config.image_size
        self.model: Flava = model
        ask_for_gradients(model)
        trained = model.parameters_of(View.MULTIMODAL, read_directly=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        assert pixels is not None  # these are pairs
        part = FlavaPart(self.model)
        packed = pack(texts, part.device)
        layout, image, text = part.layout(packed), part.encode_images(pixels), part.encode_texts(packed)
        first = layout.cu_seqlens[:-1].long()
        return self.model.fuse(image.packed, text.packed, layout, keep=first).rows(first)


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
