"""Cross-entropy of a linear classifier over selected rows.

loss = sum_i [ logsumexp_v(z_i) - z_{i, y_i} ],   z = H W^T + b
G = softmax(z) - onehot(y),   dH = G W,   dW = G^T H,   db = colsum(G)

Rows are processed in chunks whose logits fit a memory budget; one chunk if possible, because each chunk reads
all of W. The gradients are finished chunk by chunk in the forward pass, where G overwrites the logits, and
the backward pass only scales them. On a CPU with few rows G is kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import autocast, checks, dispatch
from flava_kernels.cases.linear_cross_entropy import cases
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.linear_cross_entropy_reference import IGNORE_INDEX, forward_reference
from flava_kernels.op import DTYPES, Limits, Op

NAME = "linear_cross_entropy"
LOGITS_BUDGET_BYTES = 256 * 2**20
"""Size of a chunk's logits, unless a single row has more."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None = None,
    *,
    budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and the number of rows whose largest logit is the label's.

    Among equal logits the first counts as the largest. Logits, and G in their place, are rounded to the dtype
    of `hidden`; softmax and sums are fp32. The backward pass needs dH, dW and db or, on a CPU with no more
    rows than columns, G, H and W.

    Shapes:
        hidden   [k d], or [T d] with rows
        weight   [v d]
        bias     [v]
        labels   [k]    int64: a class, or IGNORE_INDEX
        rows     [k]    int64: the row of `hidden` for each label, each at most once; None for all in order.
                        Rows that are not named are never read
        returns  scalar (fp32, or fp64 for fp64 inputs) with gradient, scalar fp32 without; both 0 (with a
                 graph) when k = 0

    Under autocast everything is in its dtype, like a linear layer's logits. Raises ValueError for shapes that
    do not belong together and, where labels and rows can be read, for one out of range (checks.py).
    """
    checks.shape(NAME, "hidden", hidden, (hidden.shape[0], weight.shape[-1]))
    checks.shape(NAME, "bias", bias, weight.shape[:1])
    checks.shape(NAME, "labels", labels, hidden.shape[:1] if rows is None else rows.shape)
    hidden, weight, bias = autocast.like_linear(hidden, weight, bias)
    gradients = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight, bias)]
    if dispatch.needs_custom_operator(hidden):
        return _linear_cross_entropy(hidden, weight, bias, labels, rows, gradients, budget_bytes)[:2]
    function = _EagerLinearCrossEntropy if dispatch.runs_on_the_cpu(hidden) else _LinearCrossEntropy
    return function.apply(hidden, weight, bias, labels, rows, gradients, budget_bytes)


def definition(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None = None,
    *,
    budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> tuple[Tensor, Tensor]:
    """Uses torch's own layers, with all logits at once."""
    logits = F.linear(hidden if rows is None else hidden.index_select(0, rows), weight, bias)
    correct = (logits.detach().argmax(-1) == labels).sum().float()
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels, ignore_index=IGNORE_INDEX, reduction="sum"), correct


def supports(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None = None,
    *,
    budget_bytes: int = LOGITS_BUDGET_BYTES,
) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    if hidden.dtype not in DTYPES:
        return f"hidden is {hidden.dtype}"
    if not hidden.dtype == weight.dtype == bias.dtype:
        return (
            f"hidden, weight and bias are {hidden.dtype}, {weight.dtype} and {bias.dtype}; they must be of "
            "one dtype"
        )
    if not bias.is_contiguous() or not labels.is_contiguous():
        return "bias and labels must be contiguous"
    return None


@without_autocast
def backward_reference(
    grad: Tensor,
    d_hidden: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    rows: Tensor | None,
    number_of_rows: int,
    bias_dtype: torch.dtype,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales the forward pass's gradients and scatters the rows of dH: [k d] -> [number_of_rows d].

    Gradients that were not wanted are empty.
    """
    d_hidden = _scaled(d_hidden, grad, d_hidden.dtype)
    return (
        _put_back(d_hidden, rows, number_of_rows) if gradients[0] else d_hidden,
        _scaled(d_weight, grad, d_hidden.dtype),
        _scaled(d_bias, grad, bias_dtype),
    )


def _put_back(d_hidden: Tensor, rows: Tensor | None, number_of_rows: int) -> Tensor:
    """Scatters rows to their origin, with zeros elsewhere: [k d] -> [number_of_rows d]."""
    return (
        d_hidden
        if rows is None
        else d_hidden.new_zeros(number_of_rows, d_hidden.shape[1]).index_copy_(0, rows, d_hidden)
    )


def _scaled(gradient: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies by a number that is not rounded to half precision, and rounds the product once."""
    if gradient.dtype == dtype and (dtype == grad.dtype or grad.device.type == "cpu"):
        return gradient * grad
    if grad.device.type == "cpu":
        return (gradient * grad).to(dtype)
    out = torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, grad.expand(gradient.shape), out=out)


def _kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums over rows wait for the backward pass.

    They are not divided by the number of rows yet, and fp16 ends at 65,504.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def _chunks(rows: int, row_bytes: int, budget_bytes: int) -> Iterator[slice]:
    """Cuts the rows into as few chunks as the budget allows, all equal except the last."""
    pieces = max(1, -(-rows * row_bytes // budget_bytes))
    size = max(1, -(-rows // pieces))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class _Sums:
    """Sums G^T H and colsum(G) over chunks, those that are wanted; in fp32 if there are several, or for fp16.

    A single chunk's product is already the parameters' gradient.
    """

    def __init__(self, weight: Tensor, bias: Tensor, wanted: Sequence[bool], several: bool):
        self.d_weight, self.d_bias = weight.new_empty(0), bias.new_empty(0)
        (self._weight, self._bias), self._several = wanted, several
        if self._weight and several:
            wide = torch.promote_types(weight.dtype, torch.float32)
            self.d_weight = weight.new_zeros(weight.shape, dtype=wide)
        if self._bias and several:
            self.d_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        """Adds one chunk's contribution."""
        if self._weight:
            self._add_product(gradient, hidden)
        if self._bias and self._several:
            self.d_bias += gradient.sum(0, dtype=self.d_bias.dtype)
        elif self._bias:
            self.d_bias = gradient.sum(0, dtype=_kept_dtype(gradient.dtype))

    def _add_product(self, gradient: Tensor, hidden: Tensor) -> None:
        wide, on_a_cpu = _kept_dtype(gradient.dtype), gradient.device.type == "cpu"
        if not self._several and wide == gradient.dtype:
            self.d_weight = gradient.T @ hidden
        elif not self._several:
            self.d_weight = (
                gradient.T.to(wide) @ hidden.to(wide)
                if on_a_cpu
                else torch.mm(gradient.T, hidden, out_dtype=wide)
            )
        elif self.d_weight.dtype == gradient.dtype:
            self.d_weight.addmm_(gradient.T, hidden)
        elif on_a_cpu:
            self.d_weight += gradient.T.to(wide) @ hidden.to(wide)
        else:  # keep the product in fp32 until it is added
            torch.addmm(self.d_weight, gradient.T, hidden, out_dtype=self.d_weight.dtype, out=self.d_weight)


def _in_chunks(
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    gradients: Sequence[bool],
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs the whole operator, given an implementation of one chunk.

    Returns loss, correct rows, dH [k d], dW [v d], db [v]; those of the last three that `gradients` leaves
    out are empty.
    """
    number, losses, right = labels.shape[0], [], []
    chunks = list(_chunks(number, weight.shape[0] * hidden.element_size(), budget_bytes))
    d_hidden = hidden.new_empty(number if gradients[0] else 0, hidden.shape[1])
    sums = _Sums(weight, bias, gradients[1:], several=len(chunks) != 1)
    for chunk in chunks:
        part = hidden[chunk] if rows is None else hidden.index_select(0, rows[chunk])
        chunk_losses, chunk_right, gradient = forward(part, weight, bias, labels[chunk], any(gradients))
        losses.append(chunk_losses.sum())
        right.append(chunk_right.sum())
        if gradients[0]:
            torch.mm(gradient, weight, out=d_hidden[chunk])
        sums.add(gradient, part)
        del gradient  # frees it before the next chunk's logits are allocated
    loss, correct = (
        hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)) for _ in range(2)
    )
    loss, correct = sum(losses, loss), sum(right, correct).float()
    d_weight, d_bias = sums.d_weight.to(_kept_dtype(weight.dtype)), sums.d_bias.to(_kept_dtype(bias.dtype))
    return loss, correct, d_hidden, d_weight, d_bias


@without_autocast
def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    gradients: list[bool],
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    checks.labels(NAME, labels, weight.shape[0], IGNORE_INDEX, rows, hidden.shape[0])
    forward = forward_reference
    if dispatch.use_triton(NAME, hidden, supports, hidden, weight, bias, labels, rows):
        from flava_kernels.triton_ops import linear_cross_entropy as kernels

        forward = kernels.forward
    return _in_chunks(forward, hidden, weight, bias, labels, rows, gradients, budget_bytes)


_linear_cross_entropy = torch.library.custom_op("flava_kernels::linear_cross_entropy", _run, mutates_args=())
_linear_cross_entropy_backward = torch.library.custom_op(
    "flava_kernels::linear_cross_entropy_backward", backward_reference, mutates_args=()
)


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, rows: Any, gradients: Any, budget_bytes: int
) -> tuple[Tensor, ...]:
    scalar = hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    return (
        scalar,
        scalar.new_empty((), dtype=torch.float32),
        hidden.new_empty(labels.shape[0] if gradients[0] else 0, hidden.shape[1]),
        weight.new_empty(weight.shape if gradients[1] else 0, dtype=_kept_dtype(weight.dtype)),
        bias.new_empty(bias.shape if gradients[2] else 0, dtype=_kept_dtype(bias.dtype)),
    )


@_linear_cross_entropy_backward.register_fake
def _(grad: Tensor, d_hidden: Tensor, d_weight: Tensor, d_bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, number_of_rows, bias_dtype, gradients = rest
    return (
        d_hidden.new_empty(number_of_rows if gradients[0] else 0, d_hidden.shape[1]),
        torch.empty_like(d_weight, dtype=d_hidden.dtype),
        torch.empty_like(d_bias, dtype=bias_dtype),
    )


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    hidden, _, bias, _, rows, gradients, _ = inputs
    if not any(gradients):
        raise RuntimeError(
            "linear_cross_entropy was called for a loss without gradients, but one is asked of it"
        )
    ctx.plain = hidden.shape[0], bias.dtype, list(gradients)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], rows)


@once_differentiable
def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return _wanted(_linear_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.plain), ctx.plain[-1])


def _wanted(found: Iterable[Tensor], gradients: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Returns a gradient, or None, for each argument of the operator."""
    of_tensors = (gradient if want else None for gradient, want in zip(found, gradients, strict=True))
    return *of_tensors, None, None, None, None


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)


class _LinearCrossEntropy(torch.autograd.Function):
    """The operator without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, _, bias, _, rows, gradients, _ = inputs
        loss, correct, *kept = _run(*inputs)
        ctx.plain = hidden.shape[0], bias.dtype, gradients
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(*kept, rows)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return _wanted(backward_reference(grad, *ctx.saved_tensors, *ctx.plain), ctx.plain[-1])


class _EagerLinearCrossEntropy(_LinearCrossEntropy):
    """The references on a CPU.

    With no more rows than columns of `hidden`, G is no larger than dW. Then G is kept, and the backward pass
    scales only rows.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, bias, labels, rows, gradients, budget_bytes = inputs
        ctx.keeps_g = any(gradients) and labels.shape[0] <= min(
            hidden.shape[1], budget_bytes // (weight.shape[0] * hidden.element_size())
        )
        if not ctx.keeps_g:
            return _LinearCrossEntropy.forward(ctx, *inputs)
        checks.labels(NAME, labels, weight.shape[0], IGNORE_INDEX, rows, hidden.shape[0])
        ctx.plain = hidden.shape[0], bias.dtype, gradients
        part = hidden if rows is None else hidden.index_select(0, rows)
        losses, right, g = forward_reference(part, weight, bias, labels, True)
        loss, correct = losses.sum(), right.sum().float()
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(g, part, weight, rows)
        return loss, correct

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        if not ctx.keeps_g:
            return _wanted(backward_reference(grad, *ctx.saved_tensors, *ctx.plain), ctx.plain[-1])
        (g, part, weight, rows), (number_of_rows, bias_dtype, gradients) = ctx.saved_tensors, ctx.plain
        needs_hidden, needs_weight, needs_bias = gradients
        return (
            _put_back(_scaled(g @ weight, grad, g.dtype), rows, number_of_rows) if needs_hidden else None,
            # a loss scale times H would overflow fp16
            weight.new_empty(weight.shape).addmm_(g.T, part, beta=0, alpha=grad.item())
            if needs_weight
            else None,
            _scaled(g.sum(0, dtype=_kept_dtype(g.dtype)), grad, bias_dtype) if needs_bias else None,
            *[None] * 4,
        )


LIMITS = {
    torch.float32: Limits(1e-6, 2e-6),
    torch.float16: Limits(5e-4, 1e-3),
    torch.bfloat16: Limits(4e-3, 8e-3),
}

OP = Op(
    NAME,
    linear_cross_entropy,
    definition,
    supports,
    cases,
    LIMITS,
    "flava_kernels.triton_ops.linear_cross_entropy",
)
