"""A BERT over packed sequences of words and regions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.bert.model import Bert
from flava_ds.families.single_stream.config import SingleStreamConfig
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout
from flava_ds.layers.regions import JointLayout, PackedImages
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import PackedIds


class SingleStream(Bert):
    """Encodes the requested views of a batch, each in a pass of its own: sequences [text | regions].

    `encode_texts` reads texts alone. A family adds the embedding of regions.
    """

    config: SingleStreamConfig  # type: ignore[assignment]  # BERT's, with regions
    regions: nn.Module
    """The family's layers that embed regions."""

    def __init__(self, config: SingleStreamConfig):
        super().__init__(config)  # type: ignore[arg-type]  # BERT reads config.text alone

    def embed_regions(self, images: PackedImages) -> Tensor:
        """Embeds packed regions, of which those that are masked look alike: [O d]."""
        raise NotImplementedError

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        keep, readings = reads or {}, self.config.readings
        seen = {
            hidden: self.embed_regions(PackedImages.of(batch, masked=hidden))
            for hidden in {readings[view].hides_regions for view in views}
        }
        return {
            view: self.encode_pairs(
                self.texts_of(view, batch),
                seen[own.hides_regions],
                self.layout(view, batch),
                batch.get(f"{own.prefix}token_types"),
                keep.get(view),
                self.drops(view, batch),
            )
            for view, own in readings.items()
            if view in views
        }

    def drops(self, view: str, batch: Batch) -> HiddenDropout | None:
        """Returns what a view's pass drops of its sequences in training."""
        layout, number = self.layout(view, batch), list(self.config.readings).index(view)
        probability, total = self.config.text.hidden_dropout, self.rows(view, batch)
        return hidden_dropout(batch, probability, layout.cu_seqlens, total, number, on=self.training)

    def rows(self, view: str, batch: Batch) -> int:
        """Returns the number of rows in all of a view's sequences."""
        return batch[self.config.readings[view].ids].shape[0] + batch["region_boxes"].shape[0]

    def encode_images(
        self,
        texts: PackedIds,
        images: PackedImages,
        layout: JointLayout,
        token_types: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Encoded:
        """Encodes texts with the regions of an image each, see `encode_pairs`."""
        return self.encode_pairs(texts, self.embed_regions(images), layout, token_types, keep)

    def encode_pairs(
        self,
        texts: PackedIds,
        regions: Tensor,
        layout: JointLayout,
        token_types: Tensor | None = None,
        keep: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> Encoded:
        """Encodes texts with the embedded regions of an image each; `keep` names the rows that will be read,
        sorted: [k]. Dropout begins with the embeddings of both, as published.

        Shapes:
            regions      [O d]
            token_types  [T]  segments of the texts; None for one segment
            returns      Encoded of [T+O d]
        """
        words = self.embeddings(texts, token_types)
        joined = layout.join(words, regions)
        joined = joined if drops is None else drops(joined)
        packed = Packed(joined, layout.cu_seqlens, layout.max_seqlen)
        hidden = self.transformer(packed, rows=keep, drops=drops)
        return Encoded(Packed(hidden, packed.cu_seqlens, packed.max_seqlen), nn.Identity(), keep)

    def region_table(self) -> Tensor:
        """Returns the linear map of a region's features: [d y]."""
        return cast(Any, self.regions).features.weight

    def texts_of(self, view: str, batch: Batch) -> PackedIds:
        """Returns the texts that a view reads."""
        own = self.config.readings[view]
        return PackedIds.of(batch, own.ids, own.prefix)

    def layout(self, view: str, batch: Batch) -> JointLayout:
        """Returns the positions in a view's sequences."""
        prefix = self.config.readings[view].prefix
        longest = batch.numbers[f"{prefix}joint_max_seqlen"]
        return JointLayout(batch[f"{prefix}cu_seqlens"], batch["region_cu_seqlens"], longest)

    def joint(self, texts: PackedIds, images: PackedImages) -> JointLayout:
        """Returns the positions in sequences of texts with an image each."""
        longest = texts.max_seqlen + images.max_seqlen
        return JointLayout(texts.cu_seqlens, images.cu_seqlens, longest)

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        return self.layout(view, batch).text_starts

    def token_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of a view's packed tokens: [k] -> [k]."""
        return self.layout(view, batch).text_rows(tokens)

    def region_rows(self, view: str, regions: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed regions: [k] -> [k]."""
        return self.layout(view, batch).region_rows(regions)

    def alignment_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of some of a view's tokens, and after them of all regions: [k] -> [k+O]."""
        layout = self.layout(view, batch)
        regions = torch.arange(batch["region_boxes"].shape[0], device=tokens.device)
        return torch.cat([layout.text_rows(tokens), layout.region_rows(regions)])

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does: all but the pooler's, and
        those of hidden regions where none is hidden.
        """
        unused = set() if self.config.readings[view].hides_regions else self.hidden_parameters()
        return {name for name, _ in self.named_parameters()} - self.pooler_parameters() - unused

    def kinds_of(self, parameter: str) -> frozenset[str]:
        """Returns the kinds of step that read a parameter, by its name."""
        return frozenset(self.config.kinds)

    def hidden_parameters(self) -> set[str]:
        """Returns the names of the parameters that only hidden regions read."""
        return set()

    def initialize(self) -> None:
        """Changes initial weights where the family's are not BERT's."""
