"""Biases whose gradient is summed by the operator behind their linear layer.

    x = h W^T + detach(b),   y = operator(x, b),   db = colsum(dx)

torch's linear layer reads dx once more for db. An operator whose backward pass writes dx has it in registers,
so the layer adds its bias detached and hands it to the operator, which reads none of its values.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from flava_kernels.eager import once_differentiable
from flava_kernels.op import DTYPES


def gradient(d_rows: Tensor, bias: Tensor) -> Tensor:
    """Sums rows [T ...] in fp32 at least, for a bias of as many elements as a row; torch's layer does so."""
    wide = torch.promote_types(d_rows.dtype, bias.dtype)
    return d_rows.sum(0, dtype=wide).to(bias.dtype).view(bias.shape)


def add(x: Tensor, residual: Tensor, x_bias: Tensor | None) -> Tensor:
    """Returns x + residual: [T d], [T d] -> [T d]; x_bias [d] is that of x, or None."""
    return x + residual if x_bias is None else _Add.apply(x, residual, x_bias)


class _Add(torch.autograd.Function):
    """An addition that sums the gradient of x's bias as the linear layer would have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, x_bias: Tensor) -> Tensor:
        ctx.save_for_backward(x_bias)
        return x + residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x_bias,) = ctx.saved_tensors
        return grad, grad, gradient(grad, x_bias) if ctx.needs_input_grad[2] else None


def definition(rows: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the same rows [T ...] with a graph to the bias, which adds its zeros."""
    return rows if bias is None else rows + (bias - bias.detach()).reshape(rows.shape[1:])


def unfitting(name: str, bias: Tensor | None, rows: Tensor) -> str | None:
    """Returns None, or why this is no bias of rows [T ...] for the kernels."""
    if bias is None or (bias.dtype in DTYPES and bias.numel() == prod(rows.shape[1:])):
        return None
    return f"{name} is {bias.dtype} {tuple(bias.shape)}; rows are {tuple(rows.shape[1:])}"
