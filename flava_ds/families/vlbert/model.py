"""VL-BERT: words that see the whole image, regions with a word of their own, and an [END] token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from flava_kernels.packing import places, sequence_of_rows, unpack
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.single_stream.model import SingleStream
from flava_ds.families.vlbert.config import VlbertConfig
from flava_ds.layers.embedding import embed
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.hidden_dropout import HiddenDropout
from flava_ds.layers.regions import JoinedRegions, JointLayout, PackedImages
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import PackedIds

REGION = 2
"""The row of the table of token types that regions and [END] have."""
OF_PAIRS = ("regions.", "region_norm.", "region_word.", "mask_word.", "mask_features.")
OF_TEXTS = ("no_image.",)
"""Prefixes of parameters that pairs alone and texts alone read."""


class Vlbert(SingleStream):
    """Sequences [text | regions | END], or [text | END] without an image.

    Every token is LN(word + LN(visual) + type + position). A region's visual part is ReLU(W [sines of its
    box, features]); its word is the same for all regions, and another one for those that are hidden. A word's
    visual part is that of the whole image, whose features are the mean of the detections that are not hidden;
    without an image it is a vector of its own. All regions have the position behind their text. There is no
    pooler.
    """

    def __init__(self, config: VlbertConfig):
        super().__init__(config)
        text, size = config.text, config.image.feature_size
        width, eps = text.hidden_size, text.layer_norm_eps
        self.pooler = nn.Identity()  # type: ignore[assignment]  # a state is the CLS itself
        self.regions = JoinedRegions(size, width, eps, "sines")
        self.word_norm, self.region_norm = LayerNorm(width, eps=eps), LayerNorm(width, eps=eps)
        self.region_word, self.mask_word, self.end, self.no_image = (nn.Embedding(1, width) for _ in range(4))
        self.mask_features = nn.Embedding(1, size)

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes the view if asked for; `reads` names the rows of it that will be read, sorted: [k]."""
        images = None
        if "region_boxes" in batch:
            images = PackedImages.of(batch)
            images = replace(images, masked=batch.get("region_hidden_rows"))
        return {
            view: self.encode_images(
                self.texts_of(view, batch),
                images,
                self.layout(view, batch),
                batch.get("token_types"),
                (reads or {}).get(view),
                self.drops(view, batch),
            )
            for view in views
        }

    def rows(self, view: str, batch: Batch) -> int:
        """Returns the number of rows in all of a view's sequences, [END] included."""
        if "region_boxes" in batch:
            return super().rows(view, batch) + batch.size
        return batch[self.config.readings[view].ids].shape[0] + batch.size

    def encode_images(
        self,
        texts: PackedIds,
        images: PackedImages | None,
        layout: JointLayout,
        token_types: Tensor | None = None,
        keep: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> Encoded:
        """Encodes texts with an image each, or without; `layout` has room for [END]."""
        sample, position = places(texts.cu_seqlens, texts.ids.shape[0])
        lengths, visual = texts.cu_seqlens.diff().long(), None
        if images is None:
            seen = self.no_image.weight.expand(texts.ids.shape[0], -1)
        else:
            visual = self.embed_regions(images)
            seen = embed(sample, visual.index_select(0, images.cu_seqlens[:-1].long()))
        types = torch.zeros_like(texts.ids) if token_types is None else token_types
        placed = self.embeddings.positions(position) + self.embeddings.token_types(types)
        words = self._normed(self.embeddings.words(texts.ids), self.word_norm(seen) + placed)
        after = self._normed(self.end.weight.expand(len(lengths), -1), self._place(lengths + 1))
        if images is not None and visual is not None:
            own = self._regions(images, visual, lengths)
            ends = torch.arange(len(lengths) + 1, device=own.device, dtype=torch.int32)
            after = JointLayout(images.cu_seqlens, ends, images.max_seqlen + 1).join(own, after)
        joined = layout.join(words, after)
        joined = joined if drops is None else drops(joined)
        packed = Packed(joined, layout.cu_seqlens, layout.max_seqlen)
        hidden = self.transformer(packed, rows=keep, drops=drops)
        return Encoded(Packed(hidden, packed.cu_seqlens, packed.max_seqlen), nn.Identity(), keep)

    def encode_texts(
        self,
        texts: PackedIds,
        token_types: Tensor | None = None,
        keep: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> Encoded:
        """Encodes packed texts without images; `keep` names tokens. The result, like `drops`, has rows for
        [END] too.
        """
        layout = without_image(texts)
        rows = None if keep is None else layout.text_rows(keep)
        return self.encode_images(texts, None, layout, token_types, rows, drops)

    def embed_regions(self, images: PackedImages) -> Tensor:
        """Returns the visual part of each region: [O d]."""
        features, starts = images.visible(self.word_table().dtype), images.cu_seqlens[:-1].long()
        counted = torch.ones_like(features[:, :1]).index_fill(0, starts, 0)
        hidden = starts[:0] if images.masked is None else images.masked
        counted = counted.index_fill(0, hidden, 0)
        counts, sums = (
            unpack(own.contiguous(), images.cu_seqlens, images.max_seqlen).sum(1)
            for own in (counted, features * counted)
        )
        alone = images.cu_seqlens.diff()[:, None] == 1
        whole = torch.where(alone, features.index_select(0, starts), sums / counts.clamp(min=1))
        features = features.index_copy(0, starts, whole)
        mask = self.mask_features.weight.expand(hidden.shape[0], -1)
        return self.regions(features.index_copy(0, hidden, mask), images.boxes)

    def _regions(self, images: PackedImages, visual: Tensor, lengths: Tensor) -> Tensor:
        """Embeds regions behind texts of these lengths: [O d], [b] -> [O d]."""
        own = self.region_word.weight.expand_as(visual)
        hidden = images.cu_seqlens[:0].long() if images.masked is None else images.masked
        own = own.index_copy(0, hidden, self.mask_word.weight.expand(hidden.shape[0], -1))
        sample = sequence_of_rows(images.cu_seqlens, visual.shape[0])
        return self._normed(own, self.region_norm(visual) + self._place(lengths[sample]))

    def _place(self, positions: Tensor) -> Tensor:
        return self.embeddings.positions(positions) + self.embeddings.token_types.weight[REGION]

    def _normed(self, own: Tensor, added: Tensor) -> Tensor:
        return self.embeddings.norm(own.contiguous(), added)[0]

    def layout(self, view: str, batch: Batch) -> JointLayout:
        """Returns the positions in a view's sequences, [END] included."""
        if "region_boxes" in batch:
            return ended(super().layout(view, batch))
        return without_image(self.texts_of(view, batch))

    def joint(self, texts: PackedIds, images: PackedImages) -> JointLayout:
        return ended(super().joint(texts, images))

    def region_rows(self, view: str, regions: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed regions, behind those of other images and their [END]: [k] -> [k]."""
        image = torch.bucketize(regions, batch["region_cu_seqlens"][1:].long(), right=True)
        return self.layout(view, batch).region_rows(regions + image)

    def kinds_of(self, parameter: str) -> frozenset[str]:
        if parameter.startswith(OF_PAIRS):
            return frozenset({"pair"})
        return frozenset({"text"}) if parameter.startswith(OF_TEXTS) else super().kinds_of(parameter)

    @torch.no_grad()
    def initialize(self) -> None:
        """Starts the gains of both visual norms, and the masked features, at zero, as published."""
        for gains in (self.word_norm.weight, self.region_norm.weight, self.mask_features.weight):
            gains.zero_()


def without_image(texts: PackedIds) -> JointLayout:
    """Returns the positions in sequences of texts without images, [END] included."""
    return ended(JointLayout(texts.cu_seqlens, torch.zeros_like(texts.cu_seqlens), texts.max_seqlen))


def ended(layout: JointLayout) -> JointLayout:
    """Returns a layout with one more row at the end of each sequence."""
    cu = layout.region_cu_seqlens
    ends = torch.arange(cu.shape[0], device=cu.device, dtype=cu.dtype)
    return JointLayout(layout.text_cu_seqlens, cu + ends, layout.max_seqlen + 1)
