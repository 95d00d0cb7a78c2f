"""CLIP: an image tower and a causal text tower, each with a projection into one space.

The position tables are called `positions`, not position_embeddings: with optimizer.decay_norm_and_bias off,
CLIP exempts gains, biases and vectors from weight decay, but not tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import cast

import torch
from einops import rearrange
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.families.clip.config import ClipConfig
from flava_ds.layers.embedding import Embedding, embed
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.heads import ContrastedModel
from flava_ds.layers.patches import PatchEmbedding
from flava_ds.layers.transformer import Block, Encoded, Transformer, encode_versions
from flava_ds.layers.words import PackedIds


class ImageTower(nn.Module):
    """Encodes images as sequences [CLS | patches]: [b c H W] -> [b*(1+n) d]."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        shape = config.image
        self.cls_token = nn.Parameter(torch.zeros(shape.hidden_size))
        self.positions = nn.Parameter(torch.zeros(1 + shape.num_patches, shape.hidden_size))
        self.patch_embedding = PatchEmbedding(shape, bias=False)
        self.embedding_norm = LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.transformer = Transformer(shape, activation=config.activation)
        self.final_norm = LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(
        self, pixel_values: Tensor, keep: Tensor | None = None, present: Tensor | None = None
    ) -> Encoded:
        """Encodes images; `keep` names the rows that will be read: [k].

        Of each image, only the rows of `present` are encoded: [b m]; None: all.
        """
        patches = self.patch_embedding(pixel_values)
        hidden = torch.cat([self.cls_token.expand(patches.shape[0], 1, -1), patches], dim=1) + self.positions
        if present is not None:
            hidden = hidden.gather(1, present[:, :, None].expand(-1, -1, hidden.shape[2]))
        length = hidden.shape[1]
        cu_seqlens = torch.arange(0, patches.shape[0] + 1, device=hidden.device, dtype=torch.int32) * length
        hidden = self.embedding_norm(rearrange(hidden, "b s d -> (b s) d"))
        layout = cu_seqlens, length
        return encode_versions(self.transformer, self.final_norm, hidden, layout, [keep], equal_lengths=True)[
            0
        ]


class TextTower(nn.Module):
    """Encodes packed texts; positions restart in each: ids [T] -> [T d]."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        shape = config.text
        self.word_embeddings = Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Parameter(torch.zeros(shape.max_position_embeddings, shape.hidden_size))
        self.transformer = Transformer(shape, causal=True, activation=config.activation)
        self.final_norm = LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, texts: PackedIds, keep: Tensor | None = None) -> Encoded:
        """Encodes texts; `keep` names the rows that will be read, sorted: [k]."""
        _, position = places(texts.cu_seqlens, texts.ids.shape[0])
        hidden = self.word_embeddings(texts.ids) + embed(position, self.positions)
        layout = texts.cu_seqlens, texts.max_seqlen
        return encode_versions(self.transformer, self.final_norm, hidden, layout, [keep])[0]

    def last_states(self, texts: PackedIds) -> Tensor:
        """Returns the state of each text's last token, which attends to all others: [b d]."""
        last = texts.cu_seqlens[1:].long() - 1
        return self(texts, last).rows(last)


class Clip(ContrastedModel):
    """Encodes the requested views of a batch: "image" and "text"."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageTower(config)
        self.text_encoder = TextTower(config)
        self.image_projection = nn.Linear(config.image.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([config.logit_scale_init]))

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes each of `views` once; `reads` names the rows of a view that will be read, sorted: [k]."""
        encoded, keep = {}, reads or {}
        if "image" in views:
            encoded["image"] = self.image_encoder(
                batch["pixel_values"], keep.get("image"), self._present(batch)
            )
        if "text" in views:
            texts = PackedIds(batch["input_ids"], batch.bounds(), batch.numbers["max_seqlen"])
            encoded["text"] = self.text_encoder(texts, keep.get("text"))
        return encoded

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        if view == "text":
            return batch["cu_seqlens"][:-1].long()
        present = self._present(batch)
        length = 1 + self.config.image.num_patches if present is None else present.shape[1]
        return torch.arange(batch.size, device=batch["pixel_values"].device) * length

    def _present(self, batch: Batch) -> Tensor | None:
        """Returns the rows of each image that training encodes: [b m]; None for all."""
        return batch.get("present_rows") if self.training else None

    def embedding_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the row of each image's CLS and of each text's last token, which attends to all others."""
        return {"image": self.first_rows("image", batch), "text": batch["cu_seqlens"][1:].long() - 1}

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does.

        `read_directly` has no effect: every view is read through its final LayerNorm.
        """
        return {f"{view}_encoder.{name}" for name, _ in getattr(self, f"{view}_encoder").named_parameters()}


@torch.no_grad()
def initialize(model: Clip) -> None:
    """Initialises weights as the published code does; everything not listed keeps torch's defaults.

    Source: the published code. Text tower: std d^-1/2 for attention inputs, divided by (2 layers)^1/2 for
    projections into the residual stream, (2d)^-1/2 for the first MLP layer; embeddings 0.02, positions 0.01.
    Image tower: tables d^-1/2, attention Xavier uniform, MLPs and patches torch's default. Projections:
    d^-1/2. LayerNorms: 1 and 0.
    """
    image, text = model.image_encoder, model.text_encoder
    for tower in (image, text):
        width = tower.positions.shape[1]
        for block in cast(Iterable[Block], tower.transformer.blocks):
            nn.init.zeros_(block.attention.qkv.bias)
            nn.init.zeros_(block.attention.output.bias)
            if tower is image:
                nn.init.xavier_uniform_(block.attention.qkv.weight)
                continue
            added = width**-0.5 * (2 * len(tower.transformer.blocks)) ** -0.5
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.output.weight, std=added)
            nn.init.normal_(block.mlp_up.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp_down.weight, std=added)
    spread = model.config.image.hidden_size**-0.5
    for table, std in ((image.cls_token, spread), (image.positions, spread), (text.positions, 0.01)):
        nn.init.normal_(table, std=std)
    nn.init.normal_(text.word_embeddings.weight, std=0.02)
    for projection in (model.image_projection, model.text_projection):
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
