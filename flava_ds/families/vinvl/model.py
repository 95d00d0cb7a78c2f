"""VinVL: how it embeds regions."""

from __future__ import annotations

from torch import Tensor

from flava_ds.families.single_stream.model import SingleStream
from flava_ds.families.vinvl.config import VinvlConfig
from flava_ds.layers.regions import JoinedRegions, PackedImages


class Vinvl(SingleStream):
    """A region is LN(W [box, features]), of six numbers of its box; it has neither type nor position."""

    def __init__(self, config: VinvlConfig):
        super().__init__(config)
        text, size = config.text, config.image.feature_size
        self.regions = JoinedRegions(size, text.hidden_size, text.layer_norm_eps, "numbers")

    def embed_regions(self, images: PackedImages) -> Tensor:
        return self.regions(images.visible(self.word_table().dtype), images.boxes)
