"""FLAVA's capabilities for evaluation: vectors, match log odds, masked predictions, states to fine-tune.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.config import Config
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.families.flava.model import Flava
from flava_ds.families.flava.text_encoder import TextEncoder
from flava_ds.families.flava.views import View, image_patch_rows
from flava_ds.families.offers import HeadPredictions, PairMatcher, Projector, Tunable, names_by_type
from flava_ds.layers.heads import MaskedPredictionHead
from flava_ds.layers.pairs import SequenceLayout
from flava_ds.layers.patches import enlarged_edge, resized_positions
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import PackedIds, pack
from flava_ds.training.task import Task

PREDICTS = {"mlm": "text", "mim": "image", "mmm_text": "text of a pair", "mmm_image": "image of a pair"}
"""What the head of each type of objective predicts."""


def offers(module: Task, config: Config) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a FLAVA with its objectives, and what it lacks: protocol -> reason.

    `module` has the model as `model` and the heads under `objectives`.
    """
    model: Flava = module.model
    objectives: Mapping[str, Any] = module.objectives  # their heads differ in type
    parts: list[object] = [FlavaEmbedder(model)]
    lacks, names = {}, names_by_type(module, config)
    if "itm" in names:
        matching: Any = config.objectives[names["itm"]]
        first, head = FlavaPart(model).first_of_pairs, objectives[names["itm"]].head
        parts.append(PairMatcher(first, head, matching.mismatch_probability))
    else:
        lacks["Matcher"] = "the run trains no objective of type itm, so it has no matching head"
    heads = {what: objectives[names[kind]].head for kind, what in PREDICTS.items() if kind in names}
    if heads:
        parts.append(FlavaScorer(model, heads))
    else:
        lacks["Scorer"] = "the run trains no masked objective"
    return tuple(parts), lacks


class FlavaPart:
    """Runs a FLAVA without a graph, calling the encoders directly instead of through a training batch."""

    def __init__(self, model: Flava) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.logit_scale.device

    def encode_images(self, pixels: Tensor, mask: Tensor | None = None) -> Encoded:
        """Encodes clean images, or masked ones given a mask: [b c H W] uint8, [b n] bool."""
        mask = None if mask is None else mask.to(self.device)
        [encoded] = self.model.image_encoder(pixels.to(self.device), mask, clean=mask is None)
        return encoded

    def encode_texts(self, texts: PackedIds) -> Encoded:
        """Encodes packed texts."""
        [encoded] = self.model.text_encoder([texts.ids], texts.cu_seqlens, texts.max_seqlen)
        return encoded

    def layout(self, texts: PackedIds) -> SequenceLayout:
        """Returns the positions in the fused sequences."""
        return SequenceLayout(self.model.config.image.num_patches, texts.cu_seqlens, texts.max_seqlen)

    def fuse(self, image: Packed, text: Packed, texts: PackedIds) -> Encoded:
        """Encodes images and texts together."""
        return self.model.fuse(image, text, self.layout(texts))

    def first_of_pairs(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the fused CLS of images [b c H W], which are encoded once, with texts: a [b d] per pairing.

        Source: paper, section 3.2 (ITM).
        """
        image, found = self.encode_images(pixels), []
        for texts in pairings:
            packed = pack(texts, self.device)
            found.append(self.fuse(image.packed, self.encode_texts(packed).packed, packed).first())
        return found


class FlavaEmbedder(FlavaPart, Projector):
    """What the encoders give without an objective's head: vectors, and copies to fine-tune.

    Source: paper, section 4: probes read the CLS before the projection; retrieval and zero-shot
    classification read the projection.
    """

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images: [b c H W] uint8 -> [b d], in the model's dtype."""
        return self.encode_images(pixels).first()

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids: -> [b d], in the model's dtype."""
        return self.encode_texts(pack(texts, self.device)).first()

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
        model = copy.deepcopy(self.model)
        enlarge(model.image_encoder, scale)
        model.config = dataclasses.replace(model.config, image=model.image_encoder.config)
        ask_for_gradients(model)
        trained = model.parameters_of(View.MULTIMODAL, read_directly=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        width, edge = model.config.multimodal.hidden_size, model.config.image_size
        return Tunable(pair_states, width=width, image_size=edge, model=model)


class FlavaScorer(FlavaPart):
    """Likelihoods of masked tokens and of the codebook codes of masked patches."""

    def __init__(self, model: Flava, heads: dict[str, MaskedPredictionHead]) -> None:
        super().__init__(model)
        self.heads = heads

    @property
    def predicts(self) -> frozenset[str]:
        """What it can score: 'text', 'image', 'text of a pair', 'image of a pair'."""
        return frozenset(self.heads)

    @torch.inference_mode()
    def read(
        self,
        texts: Sequence[np.ndarray] | None = None,
        pixels: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> FlavaReading:
        """Encodes masked inputs once: texts, images, or both as pairs.

        Shapes:
            texts    b arrays of ids, already masked
            pixels   [b c H W]  uint8
            patches  [b n]      bool, True for masked patches
        """
        packed = None if texts is None else pack(texts, self.device)
        image = None if pixels is None else self.encode_images(pixels, patches)
        text = None if packed is None else self.encode_texts(packed)
        layout, encoded = None, image if text is None else text
        assert encoded is not None  # a reading has a text, a picture or both
        if image is not None and text is not None and packed is not None:
            layout, encoded = self.layout(packed), self.fuse(image.packed, text.packed, packed)
        return FlavaReading(encoded, layout, self.heads, self.model.config.image.num_patches)


@dataclass(frozen=True)
class FlavaReading:
    """One masked pass, to be queried at masked positions."""

    encoded: Encoded
    layout: SequenceLayout | None
    heads: dict[str, MaskedPredictionHead]
    num_patches: int

    @torch.inference_mode()
    def tokens(self, rows: Tensor) -> HeadPredictions:
        """Predicts tokens; `rows` index the concatenated texts: [k]."""
        rows = rows.to(self.encoded.packed.hidden.device)
        if self.layout is None:
            return HeadPredictions(self.encoded.rows(rows), self.heads["text"])
        return HeadPredictions(self.encoded.rows(self.layout.text_rows(rows)), self.heads["text of a pair"])

    @torch.inference_mode()
    def codes(self, rows: Tensor) -> HeadPredictions:
        """Predicts codes of patches; `rows` are flat indices into [b n]: [k]."""
        rows = rows.to(self.encoded.packed.hidden.device)
        if self.layout is None:
            return HeadPredictions(
                self.encoded.rows(image_patch_rows(rows, self.num_patches)), self.heads["image"]
            )
        return HeadPredictions(self.encoded.rows(self.layout.patch_rows(rows)), self.heads["image of a pair"])


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


def enlarge(encoder: ImageEncoder, scale: float) -> None:
    """Turns an encoder into one of images `scale` times as large."""
    image = encoder.config
    edge = enlarged_edge(image, scale)
    if edge != image.image_size:
        larger = dataclasses.replace(image, image_size=edge)
        encoder.config, encoder.patch_embedding.image_size = larger, edge
        table = resized_positions(encoder.position_embeddings.detach(), (larger.grid_size, larger.grid_size))
        encoder.position_embeddings = nn.Parameter(table)
