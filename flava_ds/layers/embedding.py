"""Rows of a table by their numbers, whose gradients are added up in fp32 on a CPU, too.

A row of a table of words, positions or token types is used thousands of times in a micro-batch. Of so many
torch adds up the gradients in fp32 on a GPU, but on a CPU in the table's dtype, one after the other: in bf16
such a sum is 5 % off after 4,000 terms, and soon no longer grows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed(ids: Tensor, table: Tensor, padding_idx: int | None = None) -> Tensor:
    """Looks up rows: [...] -> [... d]. The row `padding_idx` gets no gradient."""
    if table.device.type != "cpu" or table.dtype.itemsize > 2:
        return F.embedding(ids, table, padding_idx)
    return _Embed.apply(ids, table, -1 if padding_idx is None else padding_idx)


class Embedding(nn.Embedding):
    """torch's module, by `embed`."""

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up rows: [...] -> [... d]."""
        return embed(ids, self.weight, self.padding_idx)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, ids: Tensor, table: Tensor, padding_idx: int) -> Tensor:
        context.save_for_backward(ids)
        context.rows, context.padding_idx = table.shape[0], padding_idx
        return F.embedding(ids, table)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = context.saved_tensors
        total = torch.ops.aten.embedding_dense_backward(
            gradient.float(), ids, context.rows, context.padding_idx, False
        )
        return None, total.to(gradient.dtype), None
