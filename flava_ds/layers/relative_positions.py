"""Attention within images whose scores also depend on where one patch lies from the other, as in BEiT."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flava_ds.layers.patches import resized_grid
from flava_ds.layers.transformer import Attention, Block, TransformerShape

WITH_CLS = 3
"""Last rows of a table: from the CLS to a patch, from a patch to the CLS, from the CLS to itself."""


class GridShape(TransformerShape, Protocol):
    """What such a block needs of an image encoder's configuration."""

    @property
    def grid_size(self) -> int: ...


class RelativeAttention(Attention):
    """Attention within images of [CLS | patches], square and all of one size, with a learned bias for each
    head and offset between two patches. Images of another size have the table interpolated.

    Biases start at zero, as BEiT's do, so that other weights compute the same with them. They are dense, so
    this is torch's attention and not the packed kernel, which has no bias.

    Shapes:
        offset_biases  [(2g-1)^2 + 3, h], of a grid of g x g patches
        hidden         [b*(1+n) d] -> [b*(1+n) d]
    Source: Bao et al. 2021, BEiT; Liu et al. 2021, Swin, section 3.2.
    """

    index: Tensor

    def __init__(self, shape: GridShape):
        super().__init__(shape.hidden_size, shape.num_attention_heads)
        self.grid = shape.grid_size
        offsets = (2 * shape.grid_size - 1) ** 2
        self.offset_biases = nn.Parameter(torch.zeros(offsets + WITH_CLS, shape.num_attention_heads))
        self.register_buffer("index", offset_index(self.grid), persistent=False)

    def forward(self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> Tensor:
        assert equal_lengths  # an image encoder's sequences are
        q, k, v = rearrange(
            self.qkv(hidden), "(b s) (three h e) -> three b h s e", three=3, h=self.num_heads, s=max_seqlen
        )
        usual = max_seqlen == 1 + self.grid**2
        biases = self.biases(self.grid if usual else math.isqrt(max_seqlen - 1)).to(q.dtype)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=biases[None])
        return rearrange(context, "b h s e -> (b s) (h e)")

    def biases(self, grid: int) -> Tensor:
        """Returns what is added to the scores in images of grid x grid patches: [h 1+n 1+n]."""
        table: Tensor = self.offset_biases
        index = self.index
        if grid != self.grid:
            edge = 2 * grid - 1
            between = resized_grid(table[:-WITH_CLS], (edge, edge), mode="bilinear")
            table, index = torch.cat([between, table[-WITH_CLS:]]), offset_index(grid).to(table.device)
        return rearrange(table[index.flatten()], "(q k) h -> h q k", q=index.shape[0])


class RelativeBlock(Block):
    """A pre-norm block with RelativeAttention."""

    def attention_of(self, shape: GridShape, causal: bool) -> Attention:
        """Builds the block's attention, which is never causal."""
        return RelativeAttention(shape)


def offset_index(grid: int) -> Tensor:
    """Returns the row of a table for each query and key of [CLS | patches]: [1+n 1+n]."""
    edge = 2 * grid - 1
    row, column = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
    down, right = row[:, None] - row + grid - 1, column[:, None] - column + grid - 1
    index = F.pad(down * edge + right, (1, 0, 1, 0))
    index[0, :], index[:, 0], index[0, 0] = edge**2, edge**2 + 1, edge**2 + 2
    return index
