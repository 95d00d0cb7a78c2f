"""Attention from packed sequences to other packed sequences, sample by sample."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Packed


def varlen_cross_attention(
    q: Tensor, kv: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attends from each sequence of queries to the keys of the same sample, in a padded layout.

    A sample without keys gets zeros.

    Shapes:
        q        [Tq h e]
        kv       [Tk 2 h e]
        cu_q     [b+1]  int32
        cu_k     [b+1]  int32
        max_q    the longest sequence of queries, or more; max_k likewise
        returns  [Tq h e]
    """
    samples = cu_q.shape[0] - 1
    of_q, of_k = places(cu_q, q.shape[0]), places(cu_k, kv.shape[0])
    queries = q.new_zeros(samples, max_q, *q.shape[1:]).index_put(of_q, q).transpose(1, 2)
    keys, values = kv.new_zeros(samples, max_k, *kv.shape[1:]).index_put(of_k, kv).permute(2, 0, 3, 1, 4)
    absent = torch.arange(max_k, device=q.device) >= cu_k.diff()[:, None]
    scores = (queries @ keys.mT / math.sqrt(q.shape[-1])).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores.masked_fill(absent[:, None, None], torch.finfo(scores.dtype).min)
    # padded values are zero, so a sample of padding alone adds up to zero
    context = scores.softmax(-1).to(values.dtype) @ values
    return context.transpose(1, 2)[of_q]


class CrossAttention(nn.Module):
    """Multi-head attention of packed rows to the memory of their sample, with the output projection.

    Shapes:
        hidden  [Tq d], the rows of `cu_q` -> [Tq d]
        memory  [Tk d] packed
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, cu_q: Tensor, max_q: int, memory: Packed) -> Tensor:
        q = rearrange(self.query(hidden), "T (h e) -> T h e", h=self.num_heads)
        kv = rearrange(self.kv(memory.hidden), "T (two h e) -> T two h e", two=2, h=self.num_heads)
        context = varlen_cross_attention(q, kv, cu_q, memory.cu_seqlens, max_q, memory.max_seqlen)
        return self.output(rearrange(context, "T h e -> T (h e)"))
