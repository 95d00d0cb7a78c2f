"""Cross-entropy of a linear classifier over selected rows.

loss = sum_i [ logsumexp_v(h_i W_v + b_v) - (h_i W_{y_i} + b_{y_i}) ]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and the number of rows whose largest logit is the label.

    Shapes:
        hidden   [k d]
        weight   [v d]
        bias     [v]
        labels   [k]     int64
        returns  scalar fp32 with gradient, scalar fp32 without; both 0 (with a graph) when k = 0
    """
    return forward_reference(hidden, weight, bias, labels)


def forward_reference(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Materialises the [k v] logits."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    correct = (logits.detach().argmax(-1) == labels).sum().float()
    return F.cross_entropy(logits, labels, reduction="sum"), correct
