"""Transformers that add positions to queries and keys of every attention, and not to values (DETR).

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", appendix A.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from flava_kernels.cross_attention import varlen_cross_attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flava_ds.batch import Packed
from flava_ds.layers.fused import FoldingLinear, ResidualLayerNorm
from flava_ds.layers.hidden_dropout import ACTIVATION, ATTENTION, CROSS, MLP, HiddenDropout
from flava_ds.layers.transformer import TransformerShape, branch_of, thinned

_WAVE = 10_000.0
_EPS = 1e-6


@dataclass(frozen=True)
class Positioned:
    """Packed sequences with a position for each row.

    Shapes:
        packed.hidden  [T d]
        positions      [T d]
    """

    packed: Packed
    positions: Tensor

    def having(self, hidden: Tensor) -> Positioned:
        """Returns other rows at the same positions."""
        return Positioned(replace(self.packed, hidden=hidden), self.positions)


class PositionedAttention(nn.Module):
    """Multi-head attention of each packed sequence to the one of the same number, without the output
    projection, which the block applies; positions are added to queries and keys.

    Head sizes that the kernels lack, such as 96, take the operator's reference, which a GPU run logs once.

    Shapes:
        queries.packed.hidden  [T d] -> [T d]
        keys.packed.hidden     [M d]
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = FoldingLinear(hidden_size, hidden_size)

    def forward(self, queries: Positioned, keys: Positioned) -> Tensor:
        asked, read = queries.packed, keys.packed
        q = self.query(asked.hidden + queries.positions)
        kv = torch.stack([self.key(read.hidden + keys.positions), self.value(read.hidden)], dim=1)
        alike = read.hidden.shape[0] == (read.cu_seqlens.shape[0] - 1) * read.max_seqlen
        context = varlen_cross_attention(
            rearrange(q, "T (h e) -> T h e", h=self.num_heads),
            rearrange(kv, "M two (h e) -> M two h e", h=self.num_heads),
            asked.cu_seqlens,
            read.cu_seqlens,
            asked.max_seqlen,
            read.max_seqlen,
            equal_keys=alike,
        )
        return rearrange(context, "T h e -> T (h e)")


class PositionedBlock(nn.Module):
    """Attention, residual, LayerNorm; with `crosses`, the same to a memory; MLP with ReLU, residual,
    LayerNorm. What attention and MLP add may be dropped, and the MLP's activations, as in DETR's code.

    Shapes:
        sequences.packed.hidden  [T d] -> [T d]
    """

    def __init__(self, shape: TransformerShape, *, crosses: bool = False):
        super().__init__()
        width, heads, eps = shape.hidden_size, shape.num_attention_heads, shape.layer_norm_eps
        self.attention = PositionedAttention(width, heads)
        self.attention_norm = ResidualLayerNorm(width, eps=eps)
        if crosses:
            self.cross_attention = PositionedAttention(width, heads)
            self.cross_norm = ResidualLayerNorm(width, eps=eps)
        self.mlp_up = nn.Linear(width, shape.intermediate_size)
        self.mlp_down = FoldingLinear(shape.intermediate_size, width)
        self.mlp_norm = ResidualLayerNorm(width, eps=eps)

    def forward(
        self,
        sequences: Positioned,
        memory: Positioned | None = None,
        drops: HiddenDropout | None = None,
    ) -> Tensor:
        context = self.attention(sequences, sequences)
        added = branch_of(self.attention.output, context, ATTENTION, None, drops)
        stream, _ = self.attention_norm(added, sequences.packed.hidden)
        if memory is not None:
            context = self.cross_attention(sequences.having(stream), memory)
            added = branch_of(self.cross_attention.output, context, CROSS, None, drops)
            stream, _ = self.cross_norm(added, stream)
        inner = thinned(self.mlp_up(stream).relu(), ACTIVATION, None, drops)
        stream, _ = self.mlp_norm(branch_of(self.mlp_down, inner, MLP, None, drops), stream)
        return stream


class PositionedTransformer(nn.Module):
    """A stack of blocks. With `crosses` they read a memory; the result is every block's output.

    Shapes:
        sequences.packed.hidden  [T d] -> [T d], or [L*T d] with `crosses`, first block first
    """

    def __init__(self, shape: TransformerShape, *, crosses: bool = False):
        super().__init__()
        self.crosses, self.activation_checkpointing = crosses, False
        blocks = (PositionedBlock(shape, crosses=crosses) for _ in range(shape.num_hidden_layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        sequences: Positioned,
        memory: Positioned | None = None,
        drops: HiddenDropout | None = None,
    ) -> Tensor:
        """Runs the blocks; `drops` is what they drop in training."""
        if self.crosses == (memory is None):
            raise ValueError("blocks that cross need a memory, others have none")
        found = []
        for number, block in enumerate(self.blocks, start=1):
            arguments: tuple[Any, ...] = (sequences, memory, None if drops is None else drops.of(number))
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(block, *arguments, use_reentrant=False)
            else:
                hidden = block(*arguments)
            sequences = sequences.having(hidden)
            found.append(hidden)
        return torch.cat(found) if self.crosses else found[-1]


def sine_positions(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Encodes the places of a grid's cells by sines and cosines, the first half by row, the second by column.

    Shapes:
        returns  [gh*gw width]  fp32, rows first
    Source: Carion et al. 2020, the code, normalised to 2 pi.
    """
    half = width // 2
    waves = torch.arange(half, device=device, dtype=torch.float32)
    waves = _WAVE ** (2 * (waves // 2) / half)
    parts = []
    for edge in grid:
        place = torch.arange(1, edge + 1, device=device, dtype=torch.float32)
        angles = (place / (edge + _EPS) * 2 * math.pi)[:, None] / waves
        parts.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1))
    down, across = parts
    rows = [down[:, None].expand(-1, grid[1], -1), across[None].expand(grid[0], -1, -1)]
    return rearrange(torch.cat(rows, dim=-1), "gh gw d -> (gh gw) d")
