"""LayerNorm, alone and after adding a residual.

    s = x + r,   m = mean(s),   q = 1 / sqrt(mean((s - m)^2) + eps),   n = (s - m) q,   y = n w + b

    dn = dy w,   ds += q (dn - mean(dn) - n mean(n dn)),   dx = dr = ds
    dw = colsum(dy n),   db = colsum(dy),   d(x's bias) = colsum(ds)

Means are over a row. ds starts as the incoming gradient of s, which saves the residual stream an addition in
the backward pass. The last sum is that of the linear layer that made x (folded_bias.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import autocast, checks, dispatch, folded_bias
from flava_kernels.cases.layer_norm import add_layer_norm_cases, layer_norm_cases
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.op import DTYPES, Limits, Op

MOST_COLUMNS = 8192
"""A row stays in the registers of one program."""


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalises rows; statistics are fp32 (fp64 for fp64 inputs).

    Shapes:
        x             [T d]
        weight, bias  [d]    in x's dtype or fp32
        returns       [T d]  in x's dtype; under autocast on a GPU in fp32, like torch's

    Raises ValueError for parameters of another shape, or an eps below 0.
    """
    checks.not_negative("layer_norm", "eps", eps)
    checks.shape("layer_norm", "weight", weight, x.shape[-1:])
    checks.shape("layer_norm", "bias", bias, x.shape[-1:])
    x, weight, bias = autocast.like_layer_norm(x, weight, bias)
    if dispatch.needs_custom_operator(x):
        return _layer_norm(x, weight, bias, eps)[0]
    if dispatch.runs_on_the_cpu(x) and _is_native(x, weight, bias):
        return layer_norm_definition(x, weight, bias, eps)
    return _LayerNorm.apply(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, x_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Adds a branch to its residual stream and normalises the sum; returns both.

    Shapes:
        x, residual   [T d]  of one dtype; the sum is rounded to it before it is normalised
        weight, bias  [d]    in x's dtype or fp32
        x_bias        [d]    which x's layer has added detached: only its gradient is computed here
        returns       [T d] normalised, [T d] sum

    Raises ValueError for shapes that differ from these, or an eps below 0.
    """
    checks.not_negative("add_layer_norm", "eps", eps)
    checks.shape("add_layer_norm", "residual", residual, x.shape)
    checks.shape("add_layer_norm", "weight", weight, x.shape[-1:])
    checks.shape("add_layer_norm", "bias", bias, x.shape[-1:])
    if x_bias is not None:
        checks.shape("add_layer_norm", "x_bias", x_bias, x.shape[-1:])
    x, residual = autocast.like_cat(x, residual)
    x, residual, weight, bias = autocast.like_layer_norm(x, residual, weight, bias)
    if dispatch.needs_custom_operator(x):
        return _add_layer_norm(x, residual, weight, bias, eps, x_bias)[:2]
    if dispatch.runs_on_the_cpu(x):
        total = folded_bias.add(x, residual, x_bias)
        return layer_norm(total, weight, bias, eps), total
    return _AddLayerNorm.apply(x, residual, weight, bias, eps, x_bias)


def forward_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y [T d], s [T d] (x itself without a residual), m [T 1] and q [T 1]."""
    total = x if residual is None else (x + residual).contiguous()
    operand, wide = total, torch.promote_types(total.dtype, torch.float32)
    if not _is_native(total, weight, bias):
        weight, bias = weight.to(wide), bias.to(wide)
        # only the CPU kernel supports rows and parameters of different dtypes
        operand = total if total.device.type == "cpu" else total.to(wide)
    y, mean, rstd = torch.native_layer_norm(operand, total.shape[-1:], weight, bias, eps)
    return y.to(total.dtype), total, mean, rstd


def backward_reference(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    parameters: bool = True,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns ds [T d], dw [d], db [d] and the gradient of x's bias [d].

    Without `parameters` dw and db are empty, without `x_bias` its gradient is.

    On a CPU, half precision is converted to fp32: torch's own kernel would sum dw and db in half precision,
    which is 5 % off in bf16 after 2,000 rows.
    """
    native = _is_native(total, weight, bias)
    grad, rows, wide_weight, wide_bias = (
        tensor if native else tensor.to(torch.promote_types(total.dtype, torch.float32))
        for tensor in (grad, total, weight, bias)
    )
    gradients = torch.ops.aten.native_layer_norm_backward(
        grad, rows, rows.shape[-1:], mean, rstd, wide_weight, wide_bias, [True, parameters, parameters]
    )
    d_total = gradients[0] if grad_total is None else gradients[0].add_(grad_total)
    d_x_bias = total.new_empty(0) if x_bias is None else folded_bias.gradient(d_total, x_bias)
    if not parameters:
        return d_total.to(total.dtype), weight.new_empty(0), bias.new_empty(0), d_x_bias
    return d_total.to(total.dtype), gradients[1].to(weight.dtype), gradients[2].to(bias.dtype), d_x_bias


def _is_native(total: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Returns True if torch's kernels support these dtypes with fp32 statistics and parameter gradients."""
    return weight.dtype == bias.dtype == total.dtype and (
        total.device.type != "cpu" or total.dtype in (torch.float32, torch.float64)
    )


def layer_norm_definition(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Calls torch's LayerNorm."""
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def add_layer_norm_definition(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, x_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Calls torch's addition and LayerNorm."""
    total = folded_bias.definition(x, x_bias) + residual
    return layer_norm_definition(total, weight, bias, eps), total


def layer_norm_supports(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}"
    if any(parameter.dtype not in (x.dtype, torch.float32) for parameter in (weight, bias)):
        return (
            f"weight and bias are {weight.dtype} and {bias.dtype}, x is {x.dtype}; they must be of its "
            "dtype or fp32"
        )
    if x.dim() != 2 or x.stride(-1) != 1:
        return f"x has shape {tuple(x.shape)} and strides {x.stride()}; it must be [T d] with contiguous rows"
    if not 1 <= x.shape[1] <= MOST_COLUMNS:
        return f"rows have {x.shape[1]} elements; from 1 to {MOST_COLUMNS} are possible"
    if not weight.is_contiguous() or not bias.is_contiguous():
        return "weight and bias must be contiguous"
    return None


def add_layer_norm_supports(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, x_bias: Tensor | None = None
) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    if residual.dtype != x.dtype or residual.shape != x.shape or residual.stride(-1) != 1:
        return (
            f"residual is {residual.dtype} {tuple(residual.shape)} with strides {residual.stride()}, x is "
            f"{x.dtype} {tuple(x.shape)}"
        )
    return layer_norm_supports(x, weight, bias, eps) or folded_bias.unfitting("x_bias", x_bias, x)


def _statistics_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1] + (1,), dtype=torch.promote_types(x.dtype, torch.float32))


def _takes_triton(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    x_bias: Tensor | None = None,
) -> bool:
    if residual is None:
        return dispatch.use_triton("layer_norm", x, layer_norm_supports, x, weight, bias, eps)
    arguments = x, residual, weight, bias, eps, x_bias
    return dispatch.use_triton("add_layer_norm", x, add_layer_norm_supports, *arguments)


@without_autocast
def _normalise(
    triton: bool, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if triton:
        from flava_kernels.triton_ops import layer_norm as kernels

        return kernels.forward(x, residual, weight, bias, eps)
    return forward_reference(x, residual, weight, bias, eps)


@without_autocast
def _gradients(
    triton: bool,
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    parameters: bool,
    x_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns what `backward_reference` does."""
    if triton:
        from flava_kernels.triton_ops import layer_norm as kernels

        return kernels.backward(grad, grad_total, total, mean, rstd, weight, bias, parameters, x_bias)
    return backward_reference(grad, grad_total, total, mean, rstd, weight, bias, parameters, x_bias)


@torch.library.custom_op("flava_kernels::layer_norm", mutates_args=())
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, _, mean, rstd = _normalise(_takes_triton(x, None, weight, bias, eps), x, None, weight, bias, eps)
    return y, mean, rstd


@_layer_norm.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), _statistics_like(x), _statistics_like(x)


@torch.library.custom_op("flava_kernels::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, x_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    triton = _takes_triton(x, residual, weight, bias, eps, x_bias)
    return _normalise(triton, x, residual, weight, bias, eps)


@_add_layer_norm.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), _statistics_like(x), _statistics_like(x)


@torch.library.custom_op("flava_kernels::layer_norm_backward", mutates_args=())
def _layer_norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    parameters: bool,
    x_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    triton = _takes_triton(total, None, weight, bias, 0.0)
    return _gradients(triton, grad, grad_total, total, mean, rstd, weight, bias, parameters, x_bias)


@_layer_norm_backward.register_fake
def _(grad: Tensor, grad_total: Tensor | None, total: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, weight, bias, parameters, x_bias = rest
    d_weight, d_bias = (own.new_empty(own.shape if parameters else 0) for own in (weight, bias))
    d_x_bias = total.new_empty(0) if x_bias is None else x_bias.new_empty(x_bias.shape)
    return total.new_empty(total.shape), d_weight, d_bias, d_x_bias


def _save_layer_norm(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, mean, rstd, weight, bias, None)


def _save_add_layer_norm(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, _, weight, bias, _, x_bias = inputs
    _, total, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, mean, rstd, weight, bias, x_bias)


def _differentiate(
    gradients: Callable[..., tuple[Tensor, ...]],
    ctx: Any,
    needs: tuple[bool, ...],
    grad: Tensor | None,
    grad_total: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Returns ds, and the gradients of weight, bias and x's bias: of these three those that are needed."""
    *saved, x_bias = ctx.saved_tensors
    x_bias = x_bias if needs[2] else None
    if grad is None:
        if grad_total is None or x_bias is None:
            return grad_total, None, None, None
        return grad_total, None, None, folded_bias.gradient(grad_total, x_bias)
    d_total, *others = gradients(grad, grad_total, *saved, needs[0] or needs[1], x_bias)
    return d_total, *(other if need else None for other, need in zip(others, needs, strict=True))


def _differentiate_layer_norm(
    ctx: Any,
    grad: Tensor | None,
    *_: Tensor | None,
    gradients: Callable[..., tuple[Tensor, ...]] = _layer_norm_backward,
) -> tuple[Tensor | None, ...]:
    needs = (*ctx.needs_input_grad[1:3], False)
    return *_differentiate(gradients, ctx, needs, grad)[:3], None


def _differentiate_add_layer_norm(
    ctx: Any,
    grad: Tensor | None,
    grad_total: Tensor | None,
    *_: Tensor | None,
    gradients: Callable[..., tuple[Tensor, ...]] = _layer_norm_backward,
) -> tuple[Tensor | None, ...]:
    needs = (*ctx.needs_input_grad[2:4], ctx.needs_input_grad[5])
    d_total, d_weight, d_bias, d_x_bias = _differentiate(gradients, ctx, needs, grad, grad_total)
    return d_total, d_total, d_weight, d_bias, None, d_x_bias


_layer_norm.register_autograd(_differentiate_layer_norm, setup_context=_save_layer_norm)
_add_layer_norm.register_autograd(_differentiate_add_layer_norm, setup_context=_save_add_layer_norm)


class _LayerNorm(torch.autograd.Function):
    """`layer_norm` without torch.library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.triton = _takes_triton(x, None, weight, bias, eps)
        y, _, mean, rstd = _normalise(ctx.triton, x, None, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias, None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiate_layer_norm(ctx, grad, gradients=partial(_gradients, ctx.triton))


class _AddLayerNorm(torch.autograd.Function):
    """`add_layer_norm` without torch.library."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        x_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.triton = _takes_triton(x, residual, weight, bias, eps, x_bias)
        y, total, mean, rstd = _normalise(ctx.triton, x, residual, weight, bias, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, mean, rstd, weight, bias, x_bias)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = partial(_gradients, ctx.triton)
        return _differentiate_add_layer_norm(ctx, grad, grad_total, gradients=gradients)


LIMITS = {
    torch.float32: Limits(2e-7, 2e-7),
    torch.float16: Limits(5e-4, 5e-4),
    torch.bfloat16: Limits(3.5e-3, 3.5e-3),
}

LAYER_NORM = Op(
    "layer_norm",
    layer_norm,
    layer_norm_definition,
    layer_norm_supports,
    layer_norm_cases,
    LIMITS,
    "flava_kernels.triton_ops.layer_norm",
)
ADD_LAYER_NORM = Op(
    "add_layer_norm",
    add_layer_norm,
    add_layer_norm_definition,
    add_layer_norm_supports,
    add_layer_norm_cases,
    LIMITS,
    "flava_kernels.triton_ops.layer_norm",
)
