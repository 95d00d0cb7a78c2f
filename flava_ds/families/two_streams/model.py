"""LXMERT and ViLBERT: words and regions in two streams that read each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.two_streams.config import (
    REGIONS_VIEW,
    TEXT_VIEW,
    LxmertConfig,
    TwoStreamConfig,
    VilbertConfig,
)
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout
from flava_ds.layers.regions import AddedRegions, PackedImages
from flava_ds.layers.transformer import Encoded, Pooler
from flava_ds.layers.two_streams import CoAttention, SharedExchange, TwoStreams
from flava_ds.layers.words import BertEmbeddings, PackedIds

STREAM_OF = {TEXT_VIEW: "text", REGIONS_VIEW: "regions"}
"""The stream that is a view's output."""


class TwoStreamModel(nn.Module):
    """Encodes a batch once, with masked words and hidden regions, into two views: one for each stream."""

    def __init__(self, config: TwoStreamConfig, regions: AddedRegions, exchanges: Sequence[nn.Module]):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config.text)
        self.region_embeddings = regions
        self.streams = TwoStreams(*config.stream_shapes, exchanges)

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes `views`; `reads` names the rows of a view that will be read, sorted: [k]."""
        if not views:
            return {}
        texts = PackedIds.of(batch, "input_ids_masked")
        images, drops = PackedImages.of(batch, masked="region_hidden_rows" in batch), self.drops(batch)
        regions = self.regions_alone(images, drops.get("regions"))
        keep = reads or {}
        return self.encode_pairs(texts, regions, {view: keep.get(view) for view in views}, drops)

    def drops(self, batch: Batch) -> dict[str, HiddenDropout]:
        """Returns what is dropped of each stream in training."""
        found = {}
        for number, (stream, rows, bounds) in enumerate(
            (("text", "input_ids_masked", "cu_seqlens"), ("regions", "region_boxes", "region_cu_seqlens"))
        ):
            probability, total = self.config.text.hidden_dropout, batch[rows].shape[0]
            own = hidden_dropout(batch, probability, batch[bounds], total, number, on=self.training)
            if own is not None:
                found[stream] = own
        return found

    def regions_alone(self, images: PackedImages, drops: HiddenDropout | None = None) -> Packed:
        """Returns the states of regions before they read words, which do not depend on any text: [O d]."""
        features = images.visible(self.region_embeddings.features.weight.dtype)
        hidden = self.embedded(features, images.boxes)
        hidden = hidden if drops is None else drops(hidden)
        return self.streams.alone("regions", Packed(hidden, images.cu_seqlens, images.max_seqlen), drops)

    def embedded(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Embeds regions: [O y], [O 4] -> [O d]."""
        return self.region_embeddings(features, boxes)

    def encode_pairs(
        self,
        texts: PackedIds,
        regions: Packed,
        reads: Mapping[str, Tensor | None],
        drops: Mapping[str, HiddenDropout] | None = None,
    ) -> dict[str, Encoded]:
        """Encodes texts with the states of their regions from `regions_alone`; `reads` names the views and
        the rows of each that will be read, sorted: [k], or None for all.
        """
        of_text = (drops or {}).get("text")
        embedded = texts.packed(self.embeddings(texts, drops=of_text))
        text = self.streams.alone("text", embedded, of_text)
        wanted = {STREAM_OF[view]: rows for view, rows in reads.items()}
        found = self.streams.meet(text, regions, wanted, drops)
        bounds = {TEXT_VIEW: text, REGIONS_VIEW: regions}
        return {
            view: Encoded(
                Packed(found[STREAM_OF[view]], bounds[view].cu_seqlens, bounds[view].max_seqlen),
                nn.Identity(),
                rows,
            )
            for view, rows in reads.items()
        }

    def pooled(self, *first: Tensor) -> Tensor:
        """Pools the first rows of the family's `pooled_views`: [b d] each -> [b d]."""
        raise NotImplementedError

    def pooled_text(self, first: Tensor) -> Tensor:
        """Pools the CLS of texts alone: [b d] -> [b pooled_size]."""
        raise NotImplementedError

    def word_table(self) -> Tensor:
        """Returns the word embeddings: [v d]."""
        return self.embeddings.words.weight

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each text's CLS, or of each whole image: [b]."""
        bounds = {TEXT_VIEW: "cu_seqlens", REGIONS_VIEW: "region_cu_seqlens"}
        return batch[bounds[view]][:-1].long()

    def token_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed tokens, which are the tokens' own: [k] -> [k]."""
        return tokens

    def region_rows(self, view: str, regions: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed regions, which are the regions' own: [k] -> [k]."""
        return regions

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does."""
        read = {f"streams.{name}" for name in self.streams.parameters_of([STREAM_OF[view]])}
        embedded = ("embeddings.", "region_embeddings.")
        return read | {name for name, _ in self.named_parameters() if name.startswith(embedded)}

    def pooler_parameters(self) -> set[str]:
        """Returns the names of the poolers' parameters."""
        own = ("embeddings.", "region_embeddings.", "streams.")
        return {name for name, _ in self.named_parameters() if not name.startswith(own)}


class Lxmert(TwoStreamModel):
    """LXMERT. A region's embedding is the mean of its features' and its box's, each of them normalised."""

    def __init__(self, config: LxmertConfig):
        text, size = config.text, config.image.feature_size
        regions = AddedRegions(size, text.hidden_size, text.layer_norm_eps, 4, apart=True, normed=False)
        super().__init__(config, regions, [SharedExchange(text) for _ in range(config.rounds)])
        self.pooler = Pooler(text.hidden_size)

    def embedded(self, features: Tensor, boxes: Tensor) -> Tensor:
        return super().embedded(features, boxes) / 2

    def pooled(self, *first: Tensor) -> Tensor:
        """Returns dense and tanh over the texts' CLS: [b d] -> [b d]."""
        return self.pooler(*first)

    def pooled_text(self, first: Tensor) -> Tensor:
        return self.pooler(first)


class Vilbert(TwoStreamModel):
    """ViLBERT. A region's embedding is the normalised sum of its features' and its box's.

    The published layers also hold two projections each that nothing reads; they are left out.
    """

    def __init__(self, config: VilbertConfig):
        text, image = config.stream_shapes
        eps, width = image.layer_norm_eps, config.co_attention_size
        regions = AddedRegions(config.image.feature_size, image.hidden_size, eps, 5, apart=False, normed=True)
        exchanges = [CoAttention(text, image, config.co_attention_heads, width) for _ in range(config.rounds)]
        super().__init__(config, regions, exchanges)
        self.text_pooler = nn.Linear(text.hidden_size, width)
        self.region_pooler = nn.Linear(image.hidden_size, width)

    def pooled(self, *first: Tensor) -> Tensor:
        """Returns the product of what dense and ReLU make of the texts' CLS and of the whole images.

        Shapes:
            first  [b d] and [b d'] -> [b pooled_size]
        """
        text, image = first
        return self.pooled_text(text) * self.region_pooler(image).relu()

    def pooled_text(self, first: Tensor) -> Tensor:
        """Returns the texts' factor of the product."""
        return self.text_pooler(first).relu()
