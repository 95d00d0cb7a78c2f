"""Self-attention of a transformer's blocks."""

from __future__ import annotations

from einops import rearrange
from flava_kernels.attention import varlen_attention
from torch import Tensor, nn

from flava_ds.layers.fused import FoldingLinear


class Attention(nn.Module):
    """Multi-head self-attention within each packed sequence, without the output projection.

    The block applies the projection, only to the rows that it keeps. With `causal`, tokens attend to no later
    token.

    Shapes:
        hidden  [T d] -> [T d]
    """

    def __init__(self, hidden_size: int, num_heads: int, *, causal: bool = False):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = FoldingLinear(hidden_size, 3 * hidden_size)
        self.output = FoldingLinear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> Tensor:
        projected, bias = self.qkv.unsummed(hidden)
        qkv = rearrange(projected, "T (three h e) -> T three h e", three=3, h=self.num_heads)
        context = varlen_attention(
            qkv, cu_seqlens, max_seqlen, equal_lengths=equal_lengths, causal=self.causal, qkv_bias=bias
        )
        return rearrange(context, "T h e -> T (h e)")
