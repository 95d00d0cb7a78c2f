"""UNITER: how it embeds regions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flava_ds.families.single_stream.model import SingleStream
from flava_ds.families.uniter.config import UniterConfig
from flava_ds.layers.regions import AddedRegions, PackedImages

IMAGE = 1
"""The row of the table of token types that regions have."""


class Uniter(SingleStream):
    """A region is LN(LN(W features) + LN(V box) + type), of seven numbers of its box.

    The features of a hidden region are those of a learned mask. Its table has two rows, as published, of
    which only the second is read.
    """

    def __init__(self, config: UniterConfig):
        super().__init__(config)
        text, size = config.text, config.image.feature_size
        self.regions = AddedRegions(size, text.hidden_size, text.layer_norm_eps, 7, apart=True, normed=True)
        self.mask_embedding = nn.Embedding(2, size)

    def embed_regions(self, images: PackedImages) -> Tensor:
        features = images.features.to(self.region_table().dtype)
        if images.masked is not None:
            mask = self.mask_embedding.weight[1].expand(images.masked.shape[0], -1)
            features = features.index_copy(0, images.masked, mask)
        return self.regions(features, images.boxes, self.embeddings.token_types.weight[IMAGE])

    def hidden_parameters(self) -> set[str]:
        return {"mask_embedding.weight"}

    @torch.no_grad()
    def initialize(self) -> None:
        """Zeroes the mask's first row, which nothing reads."""
        self.mask_embedding.weight[0].zero_()
