"""Cross-entropy of a linear classifier over selected rows.

loss = sum_i [ logsumexp_v(z_i) - z_{i, y_i} ],   z = H W^T + b
G = softmax(z) - onehot(y),   dH = G W,   dW = G^T H,   db = colsum(G)

Rows are processed in chunks whose logits fit a memory budget; one chunk if possible, because each chunk reads
all of W. The gradients are finished chunk by chunk in the forward pass, where G overwrites the logits, and
the backward pass only scales them. On a CPU with few rows G is kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import dispatch
from flava_kernels.cases.linear_cross_entropy import cases
from flava_kernels.eager import once_differentiable
from flava_kernels.op import DTYPES, Limits, Op

IGNORE_INDEX = -100
"""Label of a row that does not count."""

LOGITS_BUDGET_BYTES = 256 * 2**20
"""Size of a chunk's logits, unless a single row has more."""

REFERENCE_BLOCK_BYTES = 2**20
"""fp32 logits that the reference's softmax processes at a time: they should fit a core's cache."""


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
    """
    gradients = torch.is_grad_enabled() and (
        hidden.requires_grad or weight.requires_grad or bias.requires_grad
    )
    if dispatch.needs_custom_operator(hidden):
        return _linear_cross_entropy(hidden, weight, bias, labels, rows, gradients, budget_bytes)[:2]
    return _EagerLinearCrossEntropy.apply(hidden, weight, bias, labels, rows, gradients, budget_bytes)


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


def forward_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each row's loss, whether it was correct, and G: [k], [k], [k v].

    G is the memory of the bare logits unless `gradients`.
    """
    logits, wide_bias = hidden @ weight.T, bias.to(torch.promote_types(hidden.dtype, torch.float32))
    counts = labels != IGNORE_INDEX
    places, counts = (
        torch.where(counts, labels, 0)[:, None],
        counts.to(torch.promote_types(logits.dtype, torch.float32))[:, None],
    )
    losses, right = torch.empty_like(counts), torch.empty_like(counts)
    step = max(1, REFERENCE_BLOCK_BYTES // (4 * max(logits.shape[1], 1)))
    for start in range(0, logits.shape[0], step):
        block = slice(start, start + step)
        z, place, count = logits[block].to(counts.dtype).add_(wide_bias), places[block], counts[block]
        largest, target = z.amax(-1, keepdim=True), z.gather(1, place)
        torch.mul(_is_first_of_largest(z, place, target == largest), count, out=right[block])
        total = z.sub_(largest).exp_().sum(-1, keepdim=True)
        torch.mul(total.log() - (target - largest), count, out=losses[block])
        if gradients:
            z.mul_(count / total).scatter_add_(1, place, -count)
            if z.dtype != logits.dtype:
                logits[block] = z
    return losses[:, 0], right[:, 0], logits


def _is_first_of_largest(z: Tensor, place: Tensor, largest: Tensor) -> Tensor:
    """Returns True where a row's label is its first largest class: [k v], [k 1], [k 1] -> [k 1].

    `largest` marks rows where no class is larger. On a CPU torch finds a maximum four times as fast as its
    position, so only these rows are searched.
    """
    if z.device.type == "cpu":
        rows = largest[:, 0].nonzero()[:, 0]
        return largest.index_copy_(0, rows, z[rows].argmax(-1, keepdim=True) == place[rows])
    return largest & (z.argmax(-1, keepdim=True) == place)


def backward_reference(
    grad: Tensor, d_hidden: Tensor, d_weight: Tensor, d_bias: Tensor, rows: Tensor | None, number_of_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales the forward pass's gradients and scatters the rows of dH: [k d] -> [number_of_rows d]."""
    d_hidden, d_weight, d_bias = (_scaled(gradient, grad) for gradient in (d_hidden, d_weight, d_bias))
    return _put_back(d_hidden, rows, number_of_rows), d_weight, d_bias


def _put_back(d_hidden: Tensor, rows: Tensor | None, number_of_rows: int) -> Tensor:
    """Scatters rows to their origin, with zeros elsewhere: [k d] -> [number_of_rows d]."""
    return (
        d_hidden
        if rows is None
        else d_hidden.new_zeros(number_of_rows, d_hidden.shape[1]).index_copy_(0, rows, d_hidden)
    )


def _scaled(gradient: Tensor, grad: Tensor) -> Tensor:
    """Multiplies by a number without rounding it to half precision, as a GPU does for a 0-d tensor."""
    if gradient.dtype == grad.dtype or grad.device.type == "cpu":
        return gradient * grad
    return torch.mul(gradient, grad.expand(gradient.shape), out=torch.empty_like(gradient))


def _chunks(rows: int, row_bytes: int, budget_bytes: int) -> Iterator[slice]:
    """Cuts the rows into as few chunks as the budget allows, all equal except the last."""
    pieces = max(1, -(-rows * row_bytes // budget_bytes))
    size = max(1, -(-rows // pieces))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class _Sums:
    """Sums G^T H and colsum(G) over chunks, in fp32 if there are several.

    A single chunk's product is already the parameters' gradient.
    """

    def __init__(self, weight: Tensor, bias: Tensor, several: bool):
        wide = torch.promote_types(weight.dtype, torch.float32) if several else weight.dtype
        self.d_weight = weight.new_zeros(weight.shape, dtype=wide) if several else None
        self.d_bias = (
            torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32)) if several else None
        )

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        """Adds one chunk's contribution."""
        if self.d_weight is None:
            self.d_weight, self.d_bias = gradient.T @ hidden, gradient.sum(0)
            return
        self.d_bias += gradient.sum(0, dtype=self.d_bias.dtype)
        if self.d_weight.dtype == gradient.dtype:
            self.d_weight.addmm_(gradient.T, hidden)
        elif gradient.device.type == "cpu":
            self.d_weight += gradient.T @ hidden
        else:  # keep the product in fp32 until it is added
            torch.addmm(self.d_weight, gradient.T, hidden, out_dtype=self.d_weight.dtype, out=self.d_weight)


def _in_chunks(
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    gradients: bool,
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs the whole operator, given an implementation of one chunk.

    Returns loss, correct rows, dH [k d], dW [v d], db [v]; the last three are empty without gradients.
    """
    number, losses, right = labels.shape[0], [], []
    chunks = list(_chunks(number, weight.shape[0] * hidden.element_size(), budget_bytes))
    d_hidden = hidden.new_empty(number if gradients else 0, hidden.shape[1])
    sums = _Sums(weight, bias, several=len(chunks) != 1) if gradients else None
    for chunk in chunks:
        part = hidden[chunk] if rows is None else hidden.index_select(0, rows[chunk])
        chunk_losses, chunk_right, gradient = forward(part, weight, bias, labels[chunk], gradients)
        losses.append(chunk_losses.sum())
        right.append(chunk_right.sum())
        if sums is not None:
            torch.mm(gradient, weight, out=d_hidden[chunk])
            sums.add(gradient, part)
        del gradient  # frees it before the next chunk's logits are allocated
    loss, correct = (
        hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)) for _ in range(2)
    )
    loss, correct = sum(losses, loss), sum(right, correct).float()
    kept = (
        (weight.new_empty(0), bias.new_empty(0))
        if sums is None
        else (sums.d_weight.to(weight.dtype), sums.d_bias.to(bias.dtype))
    )
    return loss, correct, d_hidden, *kept


@torch.library.custom_op("flava_kernels::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    gradients: bool,
    budget_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    forward = forward_reference
    if dispatch.use_triton("linear_cross_entropy", hidden, supports(hidden, weight, bias, labels, rows)):
        from flava_kernels.triton_ops import linear_cross_entropy as kernels

        forward = kernels.forward
    return _in_chunks(forward, hidden, weight, bias, labels, rows, gradients, budget_bytes)


@_linear_cross_entropy.register_fake
def _(hidden, weight, bias, labels, rows, gradients, budget_bytes):
    scalar = hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    d_hidden = hidden.new_empty(labels.shape[0] if gradients else 0, hidden.shape[1])
    kept = (
        (weight.new_empty(weight.shape), bias.new_empty(bias.shape))
        if gradients
        else (weight.new_empty(0), bias.new_empty(0))
    )
    return scalar, scalar.new_empty((), dtype=torch.float32), d_hidden, *kept


@torch.library.custom_op("flava_kernels::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(
    grad: Tensor, d_hidden: Tensor, d_weight: Tensor, d_bias: Tensor, rows: Tensor | None, number_of_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    return backward_reference(grad, d_hidden, d_weight, d_bias, rows, number_of_rows)


@_linear_cross_entropy_backward.register_fake
def _(grad, d_hidden, d_weight, d_bias, rows, number_of_rows):
    return (
        d_hidden.new_empty(number_of_rows, d_hidden.shape[1]),
        torch.empty_like(d_weight),
        torch.empty_like(d_bias),
    )


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    hidden, _, _, _, rows, gradients, _ = inputs
    if not gradients:
        raise RuntimeError(
            "linear_cross_entropy was called for a loss without gradients, but one is asked of it"
        )
    ctx.number_of_rows = hidden.shape[0]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:], rows)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return (
        *_linear_cross_entropy_backward(grad, *ctx.saved_tensors, ctx.number_of_rows),
        None,
        None,
        None,
        None,
    )


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)


class _EagerLinearCrossEntropy(torch.autograd.Function):
    """The reference without a custom operator.

    With no more rows than columns of `hidden`, G is no larger than dW. Then G is kept, and the backward pass
    scales only rows.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, rows, gradients, budget_bytes):
        ctx.number_of_rows = hidden.shape[0]
        ctx.keeps_g = gradients and labels.shape[0] <= min(
            hidden.shape[1], budget_bytes // (weight.shape[0] * hidden.element_size())
        )
        if ctx.keeps_g:
            part = hidden if rows is None else hidden.index_select(0, rows)
            losses, right, g = forward_reference(part, weight, bias, labels, gradients)
            loss, correct, kept = losses.sum(), right.sum().float(), (g, part, weight)
        else:
            loss, correct, *kept = _in_chunks(
                forward_reference, hidden, weight, bias, labels, rows, gradients, budget_bytes
            )
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(*kept, rows)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        *kept, rows = ctx.saved_tensors
        if not ctx.keeps_g:
            return *backward_reference(grad, *kept, rows, ctx.number_of_rows), None, None, None, None
        g, part, weight = kept
        d_hidden = _put_back(_scaled(g @ weight, grad), rows, ctx.number_of_rows)
        # a loss scale times H would overflow fp16
        d_weight = weight.new_empty(weight.shape).addmm_(g.T, part, beta=0, alpha=grad.item())
        return d_hidden, d_weight, _scaled(g.sum(0), grad), None, None, None, None


LIMITS = {
    torch.float32: Limits(1e-6, 2e-6),
    torch.float16: Limits(5e-4, 1e-3),
    torch.bfloat16: Limits(4e-3, 8e-3),
}

OP = Op(
    "linear_cross_entropy",
    linear_cross_entropy,
    definition,
    supports,
    cases,
    LIMITS,
    "flava_kernels.triton_ops.linear_cross_entropy",
)
