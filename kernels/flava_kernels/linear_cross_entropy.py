"""Cross-entropy of a linear classifier over selected rows.

loss = sum_i [ logsumexp_v(z_i) - z_{i, y_i} ],   z = H W^T + b
G = softmax(z) - onehot(y),   dH = G W,   dW = G^T H,   db = colsum(G)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and the number of rows whose largest logit is the label.

    One [k v] matrix is kept for the backward pass, in the dtype of `hidden`, where autograd would keep logits and log-probabilities and make
    two more on its way back.

    Shapes:
        hidden   [k d]
        weight   [v d]
        bias     [v]
        labels   [k]     int64
        returns  scalar (fp32, or fp64 for fp64 inputs) with gradient, scalar fp32 without; both 0 (with a graph) when k = 0
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels)


def forward_reference(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns loss, number of right rows, and G: scalar, scalar, [k v]. Softmax in fp32 at least."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = labels[:, None]
    largest, place = logits.max(-1, keepdim=True)
    correct = (place == rows).sum().float()
    target = logits.gather(1, rows) - largest
    exponentials = logits.sub_(largest).exp_()
    total = exponentials.sum(-1, keepdim=True)
    loss = (total.log() - target).sum()
    gradient = exponentials.mul_(1 / total).scatter_add_(1, rows, -torch.ones_like(total))
    return loss, correct, gradient.to(hidden.dtype)


def backward_reference(grad: Tensor, gradient: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dH [k d], dW [v d], db [v]; `grad` scales the small matrices, never the [k v] one."""
    d_hidden = (gradient @ weight) * grad.to(hidden.dtype)
    d_weight = gradient.T @ (hidden * grad.to(hidden.dtype))
    d_bias = gradient.sum(0, dtype=torch.promote_types(bias.dtype, torch.float32)) * grad
    return d_hidden, d_weight, d_bias.to(bias.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels):
        loss, correct, gradient = forward_reference(hidden, weight, bias, labels)
        ctx.save_for_backward(gradient, hidden, weight, bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, grad, _):
        return *backward_reference(grad, *ctx.saved_tensors), None
