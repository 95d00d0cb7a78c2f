"""Converts between packed and padded layouts of sequences.

    pack      packed[cu_i + j] = padded[i, j]    j < length_i
    unpack    padded[i, j] = packed[cu_i + j], or 0 from j = length_i on

Each is the other's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flava_kernels import checks, dispatch
from flava_kernels.cases import packing as cases
from flava_kernels.op import DTYPES, Limits, Op

MOST_SEQUENCES = 65535
"""Sequences are an axis of the launch grid, which CUDA limits to this."""

EXACT = {dtype: Limits(0.0, 1e-9 if dtype == torch.float16 else 0.0) for dtype in DTYPES}
"""Rows are copied, but a test's upstream gradient may lie between two of fp16's smallest numbers."""


def sequence_of_rows(cu_seqlens: Tensor, total: int) -> Tensor:
    """Returns the sequence of each packed row: [b+1] -> [T] int64."""
    return torch.bucketize(torch.arange(total, device=cu_seqlens.device), cu_seqlens[1:].long(), right=True)


def padded_slots(cu_seqlens: Tensor, max_seqlen: int, total: int) -> Tensor:
    """Returns the position of each packed row in the flat padded layout [b*s]: [b+1] -> [T] int64."""
    sequence = sequence_of_rows(cu_seqlens, total)
    return torch.arange(total, device=cu_seqlens.device) + (
        sequence * max_seqlen - cu_seqlens.long()[sequence]
    )


def padded_rows(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Returns a packed row for each row of the padded layout: [b+1] -> [b s] int64.

    Padding repeats the sequence's last row.
    """
    cu, position = cu_seqlens.long(), torch.arange(max_seqlen, device=cu_seqlens.device)
    return torch.minimum(cu[:-1, None] + position, cu[1:, None] - 1).clamp_(min=0)


def padded_validity(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Returns True for the padded rows that belong to their sequence: [b+1] -> [b s] bool."""
    return torch.arange(max_seqlen, device=cu_seqlens.device) < cu_seqlens.diff()[:, None]


def to_packed(padded: Tensor, slots: Tensor) -> Tensor:
    """Extracts the rows of all sequences from the padded layout: [b s ...] -> [T ...]."""
    return padded.flatten(0, 1).index_select(0, slots)


def pack(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Concatenates the first length_i rows of each padded sequence; never reads the padding.

    Shapes:
        padded      [b s ...]
        cu_seqlens  [b+1]      int32; no sequence longer than s
        total                  T = cu_seqlens[-1], known to the host
        returns     [T ...]

    Raises ValueError for another number of sequences.
    """
    checks.shape("pack", "cu_seqlens", cu_seqlens, (padded.shape[0] + 1,))
    function = _pack if dispatch.needs_custom_operator(padded) else _Pack.apply
    return function(padded, cu_seqlens, total)


def unpack(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Pads each packed sequence with zeros on the right.

    Shapes:
        packed      [T ...]
        cu_seqlens  [b+1]      int32; no sequence longer than max_seqlen
        returns     [b s ...]  s = max_seqlen
    """
    function = _unpack if dispatch.needs_custom_operator(packed) else _Unpack.apply
    return function(packed, cu_seqlens, max_seqlen)


def pack_supports(padded: Tensor, cu_seqlens: Tensor, total: int) -> str | None:
    """Returns None, or why the kernels of `pack` do not support this input."""
    return unsupported(cu_seqlens, padded)


def unpack_supports(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> str | None:
    """Returns None, or why the kernels of `unpack` do not support this input."""
    return unsupported(cu_seqlens, packed)


def pack_definition(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Gathers by (sequence, position), both computed from the lengths."""
    sequence, position = places(cu_seqlens, total)
    return padded[sequence, position]


def unpack_definition(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Scatters to (sequence, position), both computed from the lengths."""
    padded = packed.new_zeros(cu_seqlens.shape[0] - 1, max_seqlen, *packed.shape[1:])
    return padded.index_put(places(cu_seqlens, packed.shape[0]), packed)


def places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Returns each packed row's sequence and position in it, for definitions: [b+1] -> [T], [T]."""
    sequences = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    sequence = sequences.repeat_interleave(cu_seqlens.diff().long(), output_size=total)
    return sequence, torch.arange(total, device=cu_seqlens.device) - cu_seqlens.long()[sequence]


def pack_reference(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Gathers the rows."""
    return to_packed(padded, padded_slots(cu_seqlens, padded.shape[1], total))


def unpack_reference(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Gathers a row for every position, then zeroes the padding."""
    if packed.shape[0] == 0:
        return packed.new_zeros(cu_seqlens.shape[0] - 1, max_seqlen, *packed.shape[1:])
    padded = packed.index_select(0, padded_rows(cu_seqlens, max_seqlen).flatten())
    invalid = ~padded_validity(cu_seqlens, max_seqlen).flatten()
    return padded.masked_fill_(invalid.view(-1, *[1] * (packed.ndim - 1)), 0).unflatten(0, (-1, max_seqlen))


def _gather(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    checks.sequences("pack", cu_seqlens, total, padded.shape[1])
    if dispatch.use_triton("pack", padded, pack_supports, padded, cu_seqlens, total):
        from flava_kernels.triton_ops import packing as kernels

        return kernels.pack(padded, cu_seqlens, total)
    return pack_reference(padded, cu_seqlens, total)


def _scatter(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    checks.sequences("unpack", cu_seqlens, packed.shape[0], max_seqlen)
    if dispatch.use_triton("unpack", packed, unpack_supports, packed, cu_seqlens, max_seqlen):
        from flava_kernels.triton_ops import packing as kernels

        return kernels.unpack(packed, cu_seqlens, max_seqlen)
    return unpack_reference(packed, cu_seqlens, max_seqlen)


_pack = torch.library.custom_op("flava_kernels::pack", _gather, mutates_args=())
_unpack = torch.library.custom_op("flava_kernels::unpack", _scatter, mutates_args=())
_pack.register_fake(lambda padded, cu_seqlens, total: padded.new_empty(total, *padded.shape[2:]))
_unpack.register_fake(
    lambda packed, cu_seqlens, max_seqlen: packed.new_empty(
        cu_seqlens.shape[0] - 1, max_seqlen, *packed.shape[1:]
    )
)


def _keep_for_pack(ctx: Any, inputs: tuple, output: Any) -> None:
    padded, cu_seqlens, _ = inputs
    ctx.save_for_backward(cu_seqlens)
    ctx.size = padded.shape[1]


def _keep_for_unpack(ctx: Any, inputs: tuple, output: Any) -> None:
    packed, cu_seqlens, _ = inputs
    ctx.save_for_backward(cu_seqlens)
    ctx.size = packed.shape[0]


_pack.register_autograd(
    lambda ctx, grad: (_unpack(grad, *ctx.saved_tensors, ctx.size), None, None),
    setup_context=_keep_for_pack,
)
_unpack.register_autograd(
    lambda ctx, grad: (_pack(grad, *ctx.saved_tensors, ctx.size), None, None), setup_context=_keep_for_unpack
)


class _Pack(torch.autograd.Function):
    """`pack` without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep_for_pack(ctx, inputs, None)
        return _gather(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cu_seqlens,) = ctx.saved_tensors
        return unpack(grad, cu_seqlens, ctx.size), None, None


class _Unpack(torch.autograd.Function):
    """`unpack` without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep_for_unpack(ctx, inputs, None)
        return _scatter(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cu_seqlens,) = ctx.saved_tensors
        return pack(grad, cu_seqlens, ctx.size), None, None


def unsupported(cu_seqlens: Tensor, *rows: Tensor) -> str | None:
    """Returns None, or why kernels that move rows do not support this input."""
    if len({tensor.dtype for tensor in rows}) > 1 or rows[0].dtype not in DTYPES:
        return (
            f"the rows have {' and '.join(sorted({str(tensor.dtype) for tensor in rows}))}; one of "
            f"{', '.join(map(str, DTYPES))} is wanted"
        )
    if cu_seqlens.dtype != torch.int32:
        return f"cu_seqlens has {cu_seqlens.dtype}, int32 is wanted"
    if not cu_seqlens.is_contiguous():
        return "cu_seqlens is not contiguous"
    if cu_seqlens.shape[0] - 1 > MOST_SEQUENCES:
        return f"there are {cu_seqlens.shape[0] - 1} sequences, at most {MOST_SEQUENCES} are taken"
    return None


PACK = Op(
    "pack", pack, pack_definition, pack_supports, cases.pack_cases, EXACT, "flava_kernels.triton_ops.packing"
)
UNPACK = Op(
    "unpack",
    unpack,
    unpack_definition,
    unpack_supports,
    cases.unpack_cases,
    EXACT,
    "flava_kernels.triton_ops.packing",
)
