"""Blocks whose tokens also attend to the states of another encoder, e.g. words to an image."""

from __future__ import annotations

import torch
from einops import rearrange
from flava_kernels.cross_attention import varlen_cross_attention
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.layers.fused import Branch, FoldingLinear, ResidualLayerNorm
from flava_ds.layers.hidden_dropout import ATTENTION, CROSS, HiddenDropout
from flava_ds.layers.transformer import Block, PostNormBlock, TransformerShape, branch_of


class CrossAttention(nn.Module):
    """Multi-head attention of each packed sequence to the memory of the same number, without the output
    projection, which the block applies.

    A sequence without memory gets zeros. `memory_size` is the memory's width and `width` that of all heads
    together, both `hidden_size` if left out.

    Shapes:
        hidden         [T d] -> [T width]
        memory.hidden  [M memory_size]
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, memory_size: int | None = None, width: int | None = None
    ):
        super().__init__()
        self.num_heads, width = num_heads, width or hidden_size
        self.query = nn.Linear(hidden_size, width)
        self.key_value = nn.Linear(memory_size or hidden_size, 2 * width)
        self.output = FoldingLinear(width, hidden_size)

    def forward(self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int, memory: Packed) -> Tensor:
        q = rearrange(self.query(hidden), "T (h e) -> T h e", h=self.num_heads)
        kv = rearrange(self.key_value(memory.hidden), "M (two h e) -> M two h e", two=2, h=self.num_heads)
        equal = memory.hidden.shape[0] == (memory.cu_seqlens.shape[0] - 1) * memory.max_seqlen
        context = varlen_cross_attention(
            q, kv, cu_seqlens, memory.cu_seqlens, max_seqlen, memory.max_seqlen, equal_keys=equal
        )
        return rearrange(context, "T h e -> T (h e)")


class CrossBlock(PostNormBlock):
    """A post-norm block with attention to `memory` between its two halves.

    With `rows`, everything after self-attention is computed for these rows only.

    Source: Vaswani et al. 2017, section 3.1, without its causal mask; Li et al. 2021, ALBEF, section 3.1.
    """

    def __init__(self, shape: TransformerShape, *, causal: bool = False, activation: str = "gelu"):
        super().__init__(shape, causal=causal, activation=activation)
        self.cross_attention = CrossAttention(shape.hidden_size, shape.num_attention_heads)
        self.cross_norm = ResidualLayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(
        self,
        stream: Tensor,
        branch: Branch | None,
        cu_seqlens: Tensor,
        max_seqlen: int,
        equal_lengths: bool,
        rows: Tensor | None = None,
        paths: Tensor | None = None,
        drops: HiddenDropout | None = None,
        memory: Packed | None = None,
    ) -> tuple[Tensor, None]:
        if memory is None or paths is not None:
            raise ValueError("a CrossBlock needs `memory`, and has no stochastic depth (`paths`)")
        context = self.attention(stream, cu_seqlens, max_seqlen, equal_lengths)
        if rows is not None:
            stream, context = stream.index_select(0, rows), context.index_select(0, rows)
            cu_seqlens = torch.searchsorted(rows, cu_seqlens.long()).to(torch.int32)
            drops = None if drops is None else drops.at(rows)
        attended = branch_of(self.attention.output, context, ATTENTION, None, drops)
        stream, _ = self.attention_norm(attended, stream)
        context = self.cross_attention(stream, cu_seqlens, max_seqlen, memory)
        crossed = branch_of(self.cross_attention.output, context, CROSS, None, drops)
        stream, _ = self.cross_norm(crossed, stream)
        stream, _ = self.mlp_norm(self.mlp(stream, None, drops), stream)
        return stream, None


class DecoderBlock(Block):
    """A pre-norm block with attention to `memory` between its two halves; stream and branch are Block's.

    Source: Vaswani et al. 2017, section 3.1, with LayerNorm before each part.
    """

    def __init__(self, shape: TransformerShape, *, causal: bool = False, activation: str = "gelu"):
        super().__init__(shape, causal=causal, activation=activation)
        self.cross_attention = CrossAttention(shape.hidden_size, shape.num_attention_heads)
        self.cross_norm = ResidualLayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(
        self,
        stream: Tensor,
        branch: Branch | None,
        cu_seqlens: Tensor,
        max_seqlen: int,
        equal_lengths: bool,
        rows: Tensor | None = None,
        paths: Tensor | None = None,
        drops: HiddenDropout | None = None,
        memory: Packed | None = None,
    ) -> tuple[Tensor, Branch]:
        if memory is None or paths is not None or rows is not None:
            raise ValueError("a DecoderBlock needs `memory`, finishes all rows, and has no `paths`")
        normed, stream = self.attention_norm(branch, stream)
        context = self.attention(normed, cu_seqlens, max_seqlen, equal_lengths)
        attended = branch_of(self.attention.output, context, ATTENTION, None, drops)
        normed, stream = self.cross_norm(attended, stream)
        context = self.cross_attention(normed, cu_seqlens, max_seqlen, memory)
        crossed = branch_of(self.cross_attention.output, context, CROSS, None, drops)
        normed, stream = self.mlp_norm(crossed, stream)
        return stream, self.mlp(normed, None, drops)
