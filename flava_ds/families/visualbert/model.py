"""VisualBERT: how it embeds regions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flava_ds.families.single_stream.model import SingleStream
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.layers.regions import PackedImages

IMAGE, PLACE = 1, 0
"""The rows of the tables of types and positions that all regions have. Other positions are for regions that
a data set aligns with words, which pre-training does not have.
"""


class VisualBert(SingleStream):
    """A region is LN(W features + type + position), with the LayerNorm of the words; boxes are not read."""

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        text = config.text
        self.regions = nn.Linear(config.image.feature_size, text.hidden_size)
        self.region_types = nn.Embedding(text.type_vocab_size, text.hidden_size)
        self.region_positions = nn.Embedding(text.max_position_embeddings, text.hidden_size)

    def embed_regions(self, images: PackedImages) -> Tensor:
        content = self.regions(images.visible(self.word_table().dtype))
        place = self.region_types.weight[IMAGE] + self.region_positions.weight[PLACE]
        normed, _ = self.embeddings.norm(content, place.expand_as(content))
        return normed

    @torch.no_grad()
    def initialize(self) -> None:
        """Starts both tables of regions from those of words, as published."""
        self.region_types.weight.copy_(self.embeddings.token_types.weight)
        self.region_positions.weight.copy_(self.embeddings.positions.weight)
