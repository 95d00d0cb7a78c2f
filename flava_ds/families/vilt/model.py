"""ViLT: one pre-norm transformer over packed sequences of patches and words.

The position table is called `positions`, not position_embeddings: as published, tables are decayed with
optimizer.decay_norm_and_bias off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from einops import rearrange
from flava_kernels.fusing import fuse_sequences
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.families.vilt.config import ViltConfig
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout
from flava_ds.layers.pairs import SequenceLayout
from flava_ds.layers.patches import PatchEmbedding, resized_positions
from flava_ds.layers.transformer import Encoded, Pooler, Transformer, encode_versions
from flava_ds.layers.words import BertEmbeddings, PackedIds, PooledWords, initialize_as_bert

TEXTS = {"multimodal_masked": ("input_ids_masked", ""), "multimodal": ("matching_input_ids", "matching_")}
"""The ids that each view reads, and the prefix of their sequence bounds."""
WORD, PATCH = 0, 1
"""Rows of the table of modalities."""


class Vilt(PooledWords):
    """Encodes the requested views of a batch, each in a pass of its own over the same patches.

    "multimodal_masked" is the image with its own text, masked; "multimodal" the image with the text that may
    be another sample's. A sequence is [CLS_I | patches | text]; the published order is [text | CLS_I |
    patches], which makes no difference, because positions are part of the embeddings.
    """

    def __init__(self, config: ViltConfig):
        super().__init__()
        shape = config.image
        self.config = config
        self.embeddings = BertEmbeddings(config.words)
        self.patch_embedding = PatchEmbedding(shape)
        self.cls_token = nn.Parameter(torch.zeros(shape.hidden_size))
        self.positions = nn.Parameter(torch.zeros(1 + shape.num_patches, shape.hidden_size))
        self.modality_types = nn.Embedding(config.modality_types, shape.hidden_size)
        self.transformer = Transformer(shape, drops_inside=shape.hidden_dropout > 0)
        self.final_norm = LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.pooler = Pooler(shape.hidden_size)

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes each of `views` once; `reads` names the rows of a view that will be read, sorted: [k]."""
        if not views:
            return {}
        dropping = self.training and self.config.image.hidden_dropout > 0
        image, keep = self.embed_images(batch["pixel_values"], typed=not dropping), reads or {}
        return {
            view: self.encode_pairs(
                image, PackedIds.of(batch, *TEXTS[view]), keep.get(view), self.drops(batch, view)
            )
            for view in TEXTS
            if view in views
        }

    def drops(self, batch: Batch, view: str) -> HiddenDropout | None:
        """Returns what training drops of a view's sequences."""
        layout, stream = self.layout(view, batch), self.config.views.index(view)
        total = batch.size * layout.prefix + batch[TEXTS[view][0]].shape[0]
        probability = self.config.image.hidden_dropout
        return hidden_dropout(batch, probability, layout.cu_seqlens, total, stream, on=self.training)

    def embed_images(self, pixel_values: Tensor, *, typed: bool = True) -> tuple[Tensor, Tensor]:
        """Embeds images of any size, whose positions are interpolated bilinearly, corners aligned.

        Unless `typed`, their modality is left to `encode_pairs`, which adds it to what dropout leaves.

        Shapes:
            pixel_values  [b c H W]  uint8 in [0, 255], or floats already normalised
            returns       [d] the image's CLS and [b n d] its patches
        Raises: ValueError for images that are not whole patches, or have more than `max_patches`.
        """
        shape = self.config.image
        height, width = (edge // shape.patch_size for edge in pixel_values.shape[-2:])
        if height * width > shape.max_patches:
            raise ValueError(
                f"images of {tuple(pixel_values.shape[-2:])} pixels have {height * width} patches, more than "
                f"model.image.max_patches {shape.max_patches}; make them smaller, or raise it"
            )
        patches, positions = self.patch_embedding(pixel_values, any_size=True), cast(Tensor, self.positions)
        if (height, width) != (shape.grid_size, shape.grid_size):
            positions = resized_positions(positions, (height, width), mode="bilinear", align_corners=True)
        if typed:
            positions = positions + self.modality_types.weight[PATCH]
        return self.cls_token + positions[0], patches + positions[1:]

    def encode_pairs(
        self,
        image: tuple[Tensor, Tensor],
        texts: PackedIds,
        keep: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> Encoded:
        """Encodes images from `embed_images` with a text each; `keep` names the rows that will be read,
        sorted: [k]. With `drops`, images come without their modality.

        Shapes:
            returns  Encoded of [b*(1+n)+T d]
        """
        (first, patches), layout = image, layout_of(texts, image[1].shape[1])
        words = self.embeddings(texts)
        if drops is None:
            words = words + self.modality_types.weight[WORD]
        rows = rearrange(patches, "b n d -> (b n) d")
        hidden = fuse_sequences(first, rows, words, texts.cu_seqlens, texts.max_seqlen)
        if drops is not None:
            _, position = places(layout.cu_seqlens, hidden.shape[0])
            modality = torch.where(position < layout.prefix, PATCH, WORD)
            hidden = drops(hidden) + self.modality_types(modality)
        bounds = layout.cu_seqlens, layout.max_seqlen
        return encode_versions(self.transformer, self.final_norm, hidden, bounds, [keep], drops=drops)[0]

    def layout(self, view: str, batch: Batch) -> SequenceLayout:
        """Returns the positions in a view's sequences."""
        return layout_of(PackedIds.of(batch, *TEXTS[view]), self.config.image.num_patches)

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each text's CLS: [b]."""
        return self.layout(view, batch).text_starts

    def token_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of a view's packed tokens: [k] -> [k]."""
        return self.layout(view, batch).text_rows(tokens)

    def alignment_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of some of a view's tokens, and after them of all patches: [k] -> [k+b*n]."""
        layout = self.layout(view, batch)
        patches = torch.arange(batch.size * layout.num_patches, device=tokens.device)
        return torch.cat([layout.text_rows(tokens), layout.patch_rows(patches)])


def layout_of(texts: PackedIds, num_patches: int) -> SequenceLayout:
    """Returns the positions in sequences of images of `num_patches` patches with these texts."""
    return SequenceLayout(num_patches, texts.cu_seqlens, texts.max_seqlen, own=1)


def initialize(module: nn.Module, std: float) -> None:
    """Draws initial weights as BERT does, and the image's CLS and positions with the same deviation.

    The published run starts from a ViT that was trained on ImageNet-21k; its other weights are drawn so.
    """
    initialize_as_bert(module, std, ("cls_token", "positions"))
