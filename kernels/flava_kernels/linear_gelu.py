"""A linear layer followed by GELU in its erf form.

    z = h W^T + b,   y = z Phi(z),   Phi(z) = (1 + erf(z / sqrt(2))) / 2

    dz = dy (Phi(z) + z phi(z)),   phi(z) = exp(-z^2 / 2) / sqrt(2 pi)
    dh = dz W,   dW = dz^T h,   db = colsum(dz)

Of the two [T f] tensors only z is kept. The matrix products are torch's, with the bias added in the epilogue;
dz and db are fused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flava_kernels import autocast, checks, dispatch
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.op import DTYPES, Case, Limits, Op


def linear_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes GELU(h W^T + b).

    Shapes:
        hidden   [T d]
        weight   [f d]
        bias     [f]
        returns  [T f]

    Raises ValueError for a bias of another shape.
    """
    checks.shape("linear_gelu", "bias", bias, weight.shape[:1])
    hidden, weight, bias = autocast.like_linear(hidden, weight, bias)
    if dispatch.needs_custom_operator(hidden):
        return _linear_gelu(hidden, weight, bias)[0]
    if dispatch.runs_on_the_cpu(hidden):
        return definition(hidden, weight, bias)
    return _LinearGELU.apply(hidden, weight, bias)


def gelu_linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes GELU(z) W^T + b and keeps only z: the backward pass computes GELU(z) again.

    For the second layer of an MLP whose first one gives z. Results and gradients are those of torch's layers
    bit for bit where the kernels are not used. Under torch.compile it is these layers, whose memory the
    compiler plans.

    Shapes:
        z        [T f]
        weight   [d f]
        bias     [d]
        returns  [T d]

    Raises ValueError for a bias of another shape.
    """
    checks.shape("gelu_linear", "bias", bias, weight.shape[:1])
    z, weight, bias = autocast.like_linear(z, weight, bias)
    if torch.compiler.is_compiling():
        return gelu_linear_definition(z, weight, bias)
    return _GELULinear.apply(z, weight, bias)


def forward_reference(z: Tensor) -> Tensor:
    """Returns y: [T f] -> [T f]."""
    return F.gelu(z)


def backward_reference(grad: Tensor, z: Tensor, has_bias: bool = True) -> tuple[Tensor, Tensor]:
    """Returns dz [T f] and db [f], or [0] without a bias; torch sums in fp32 and rounds the result."""
    d_z = torch.ops.aten.gelu_backward(grad, z)
    return d_z, d_z.sum(0) if has_bias else d_z.new_empty(0)


def definition(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Uses torch's own layers."""
    return F.gelu(F.linear(hidden, weight, bias))


def gelu_linear_definition(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Uses torch's own layers."""
    return F.linear(F.gelu(z), weight, bias)


def supports(hidden: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    return _unsupported("hidden", hidden)


def gelu_linear_supports(z: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    return _unsupported("z", z)


def _unsupported(name: str, rows: Tensor) -> str | None:
    if rows.dtype not in DTYPES:
        return f"{name} is {rows.dtype}"
    if rows.dim() != 2:
        return f"{name} has shape {tuple(rows.shape)}; it must be [T d]"
    return None


def _takes_triton(hidden: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return dispatch.use_triton("linear_gelu", hidden, supports, hidden, weight, bias)


@without_autocast
def _activate(triton: bool, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    z = F.linear(hidden, weight, bias)
    return _gelu(triton, z), z


def _gelu(triton: bool, z: Tensor) -> Tensor:
    if triton:
        from flava_kernels.triton_ops import linear_gelu as kernels

        return kernels.forward(z)
    return forward_reference(z)


@without_autocast
def _gradients(
    triton: bool,
    grad: Tensor,
    z: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dh, dW and db, empty for those that `needs` leaves out."""
    needs_hidden, needs_weight, needs_bias = needs
    if triton:
        from flava_kernels.triton_ops import linear_gelu as kernels

        d_z, d_bias = kernels.backward(grad, z, needs_bias)
    else:
        d_z, d_bias = backward_reference(grad, z, needs_bias)
    return (
        d_z @ weight if needs_hidden else hidden.new_empty(0),
        d_z.T @ hidden if needs_weight else weight.new_empty(0),
        d_bias.to(bias.dtype),
    )


@torch.library.custom_op("flava_kernels::linear_gelu", mutates_args=())
def _linear_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _activate(_takes_triton(hidden, weight, bias), hidden, weight, bias)


@torch.library.custom_op("flava_kernels::linear_gelu_backward", mutates_args=())
def _linear_gelu_backward(
    grad: Tensor, z: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(_takes_triton(hidden, weight, bias), grad, z, hidden, weight, bias, needs)


@_linear_gelu.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    z = F.linear(hidden, weight, bias)
    return torch.empty_like(z), z


@_linear_gelu_backward.register_fake
def _(
    grad: Tensor, z: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    d_hidden, d_weight, d_bias = (
        x.new_empty(x.shape if need else 0) for x, need in zip((hidden, weight, bias), needs, strict=True)
    )
    return d_hidden, d_weight, d_bias


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *inputs)


def _needed(
    gradients: Callable[..., tuple[Tensor, ...]], ctx: Any, grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    found = gradients(grad, *ctx.saved_tensors, list(ctx.needs_input_grad))
    return tuple(
        gradient if need else None for gradient, need in zip(found, ctx.needs_input_grad, strict=True)
    )


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _needed(_linear_gelu_backward, ctx, grad)


_linear_gelu.register_autograd(_differentiate, setup_context=_save)


class _LinearGELU(torch.autograd.Function):
    """The operator without torch.library."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.triton = _takes_triton(hidden, weight, bias)
        y, z = _activate(ctx.triton, hidden, weight, bias)
        ctx.save_for_backward(z, hidden, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _needed(partial(_gradients, ctx.triton), ctx, grad)


class _GELULinear(torch.autograd.Function):
    """`gelu_linear`; no kernel of ours has a product in it, so it needs no custom operator."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.triton = dispatch.use_triton("gelu_linear", z, gelu_linear_supports, z, weight, bias)
        ctx.save_for_backward(z, weight)
        return F.linear(_gelu(ctx.triton, z), weight, bias)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z, weight), (needs_z, needs_weight, needs_bias) = ctx.saved_tensors, ctx.needs_input_grad
        d_z = d_weight = None
        if needs_weight:
            d_weight = grad.T @ _gelu(ctx.triton, z)
        if needs_z and ctx.triton:
            from flava_kernels.triton_ops import linear_gelu as kernels

            d_z, _ = kernels.backward(grad @ weight, z, False)
        elif needs_z:
            d_z, _ = backward_reference(grad @ weight, z, False)
        return d_z, d_weight, grad.sum(0) if needs_bias else None


def cases() -> tuple[Case, ...]:
    """Returns odd shapes, one wider than a tile, and pre-activations from -20 to 20 with subnormals."""
    names = ("hidden", "weight", "bias")
    sizes = ((1, 8, 16), (37, 24, 40), (5, 64, 770), (67, 16, 96), (0, 8, 16))
    made = [
        Case(f"{rows}x{width}x{columns}", partial(_draw, rows=rows, width=width, columns=columns), names)
        for rows, width, columns in sizes
    ]
    return (*made, Case("from -20 to 20", _draw_range, names))


def gelu_linear_cases() -> tuple[Case, ...]:
    """Returns those of `linear_gelu`, whose rows are z, and a z that is not contiguous."""

    def by_columns(generator: Generator) -> dict[str, Tensor]:
        drawn = renamed(_draw(generator, 37, 24, 40))
        return drawn | {"z": drawn["z"].T.contiguous().T}

    def renamed(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"z" if name == "hidden" else name: tensor for name, tensor in drawn.items()}

    def of(case: Case) -> Case:
        return Case(case.name, lambda generator: renamed(case.make(generator)), names)

    names = ("z", "weight", "bias")
    return (*map(of, cases()), Case("z by columns", by_columns, names))


def _draw(generator: Generator, rows: int, width: int, columns: int) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": normal(rows, width),
        "weight": normal(columns, width) * width**-0.5,
        "bias": normal(columns) / 2,
    }


def _draw_range(generator: Generator) -> dict[str, Tensor]:
    """Draws with a width and weights of one: z is the number in `hidden`."""
    drawn = torch.rand(61, 1, generator=generator, dtype=torch.float64) * 40 - 20
    special = torch.tensor(
        [-20.0, -6.0, -1e-3, -1e-39, -0.0, 0.0, 1e-39, 1e-8, 6.0, 20.0], dtype=torch.float64
    )[:, None]
    return {
        "hidden": torch.cat([drawn, special]),
        "weight": torch.ones(40, 1, dtype=torch.float64),
        "bias": torch.zeros(40, dtype=torch.float64),
    }


LIMITS = {
    torch.float32: Limits(2e-7, 5e-7),
    torch.float16: Limits(5e-4, 6e-4),
    torch.bfloat16: Limits(3.5e-3, 4.5e-3),
}
"""Gradients are products with dz, which is rounded first."""

LINEAR_GELU = Op(
    "linear_gelu", linear_gelu, definition, supports, cases, LIMITS, "flava_kernels.triton_ops.linear_gelu"
)
GELU_LINEAR = Op(
    "gelu_linear",
    gelu_linear,
    gelu_linear_definition,
    gelu_linear_supports,
    gelu_linear_cases,
    LIMITS,
    "flava_kernels.triton_ops.linear_gelu",
)
