"""Norms of gradients, precise on the host too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 1024
"""Elements in host memory whose norm is taken at once, where a tensor has more than MOST. There torch adds up
the squares in a few fp32 sums one after the other, which leaves out 1 % of a norm of 100 million elements.
"""
MOST = 2**16
"""Elements that leave out less than a millionth, and are not worth more than one call."""


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the sum of the squares of all elements of one or more tensors of one device: scalar, fp32."""
    limit = MOST if tensors[0].device.type == "cpu" else math.inf
    norms = [_norms_of_rows(own.flatten()) for own in tensors if own.numel() > limit]
    if small := [own for own in tensors if own.numel() <= limit]:
        norms.append(torch.stack(torch._foreach_norm(small, 2, dtype=torch.float32)))
    return torch.cat(norms).square().sum()


def _norms_of_rows(flat: Tensor) -> Tensor:
    """Returns the norm of every ROW elements, and that of the rest: [n] -> [n // ROW + 1], fp32."""
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=torch.float32)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float32)
    return torch.cat([rows, rest[None]])
