"""SimVLM: an encoder of patches and a text's prefix, and a causal decoder of the rest of the text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.simvlm.config import SimvlmConfig
from flava_ds.layers.cross_attention import DecoderBlock
from flava_ds.layers.embedding import Embedding, embed
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.pairs import prefixed
from flava_ds.layers.patches import resized_positions
from flava_ds.layers.resnet import ResNetStages, initialize_as_resnet
from flava_ds.layers.transformer import Encoded, Transformer
from flava_ds.layers.words import PackedIds, initialize_as_bert


class Simvlm(nn.Module):
    """Encodes the views "suffix", of pairs, and "text_suffix", of texts alone: the decoder's rows.

    The encoder reads [patches | prefix] in both directions, the decoder the last token of the prefix and the
    rest of the text but for its last token, each beside the encoder's whole output. Positions restart in the
    decoder. Tables of positions are decayed with optimizer.decay_norm_and_bias off, as word embeddings are.
    """

    def __init__(self, config: SimvlmConfig):
        super().__init__()
        image, text, width = config.image, config.text, config.encoder.hidden_size
        self.config = config
        self.image_tower = ResNetStages(image)
        self.projection = nn.Linear(self.image_tower.channels, width)
        self.words = Embedding(text.vocab_size, width)
        self.patch_positions = nn.Parameter(torch.zeros(image.num_patches, width))
        self.prefix_positions = nn.Parameter(torch.zeros(text.max_position_embeddings, width))
        self.suffix_positions = nn.Parameter(torch.zeros(text.max_position_embeddings, width))
        self.encoder = Transformer(config.encoder)
        self.encoder_norm = LayerNorm(width, eps=config.encoder.layer_norm_eps)
        self.decoder = Transformer(config.decoder, causal=True, block=DecoderBlock)
        self.decoder_norm = LayerNorm(width, eps=config.decoder.layer_norm_eps)

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes each of `views` once, all rows of them."""
        found = {}
        for view in views:
            prefix, suffix = split(batch)
            patches = self.embed_images(batch["pixel_values"]) if view == "suffix" else None
            found[view] = self.write(self.read(prefix, patches), suffix)
        return found

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Embeds images of whole patches; positions of other sizes than the configuration's are interpolated.

        Shapes:
            pixel_values  [b 3 H W]  uint8 in [0, 255], or floats that are already normalised
            returns       [b n d]
        Raises: ValueError for images that are not whole patches.
        """
        size, edge = self.config.image.patch_size, self.config.image.grid_size
        height, width = pixel_values.shape[-2:]
        if height % size or width % size:
            raise ValueError(f"pixel_values are {(height, width)}, no multiples of {size}")
        patches = self.projection(rearrange(self.image_tower(pixel_values), "b c h w -> b (h w) c"))
        positions, grid = cast(Tensor, self.patch_positions), (height // size, width // size)
        if grid != (edge, edge):
            # the function leaves a first row aside
            positions = resized_positions(F.pad(positions, (0, 0, 1, 0)), grid)[1:]
        return patches + positions

    def read(self, prefix: PackedIds, patches: Tensor | None = None) -> Packed:
        """Encodes prefixes, each after its image's patches if there are any.

        Shapes:
            patches  [b n d]
            returns  Packed of [b*n+P d], after the final LayerNorm
        """
        hidden = self.embed(prefix, self.prefix_positions)
        packed = prefix.packed(hidden)
        if patches is not None:
            packed = prefixed(patches, packed)
        return replace(packed, hidden=self.encoder_norm(self.encoder(packed)))

    def write(self, memory: Packed, suffix: PackedIds) -> Encoded:
        """Decodes packed texts, each beside its memory: [S] -> Encoded of [S d]."""
        packed = suffix.packed(self.embed(suffix, self.suffix_positions))
        return Encoded(suffix.packed(self.decoder(packed, memory=memory)), self.decoder_norm)

    def embed(self, texts: PackedIds, positions: Tensor) -> Tensor:
        """Adds word and position embeddings of packed ids: [T] -> [T d]."""
        _, place = places(texts.cu_seqlens, texts.ids.shape[0])
        return self.words(texts.ids) + embed(place, positions)

    def word_table(self) -> Tensor:
        """Returns the word embeddings, which are the classifier, too: [v d]."""
        return self.words.weight

    def suffix_rows(self, batch: Batch) -> Tensor:
        """Returns all rows of a view: [S]."""
        return torch.arange(batch["suffix_rows"].shape[0], device=batch["suffix_rows"].device)

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each suffix's first token: [b]."""
        return batch["suffix_cu_seqlens"][:-1].long()

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does; texts alone train no
        image tower.
        """
        names = {name for name, _ in self.named_parameters()}
        of_images = ("image_tower.", "projection.", "patch_positions")
        return {name for name in names if view == "suffix" or not name.startswith(of_images)}


def split(batch: Batch) -> tuple[PackedIds, PackedIds]:
    """Returns what is read of the texts of a batch, and what the decoder is given of them."""
    ids, bounds, most = batch["input_ids"], batch["suffix_cu_seqlens"], batch.numbers["max_seqlen"] - 1
    prefix, suffix = (ids.index_select(0, batch[f"{side}_rows"]) for side in ("prefix", "suffix"))
    return PackedIds(prefix, batch["cu_seqlens"] - bounds, most), PackedIds(suffix, bounds, most)


def initialize(model: Simvlm) -> None:
    """Draws convolutions as torchvision does, tables and linear layers as BERT does; none is published."""
    std = model.config.initializer_range
    initialize_as_bert(model, std)
    initialize_as_resnet(model)
    for table in (model.patch_positions, model.prefix_positions, model.suffix_positions):
        nn.init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std)
