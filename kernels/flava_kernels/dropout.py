"""Dropout whose mask is a function of integers: the sample, where a row is in it, the place in the model.

    y = x / (1 - p) where h(key, stream, column) >= 2^32 p, else 0        dx = the same of dy

h is 32 bits of a hash, so nothing but a key for each row is kept for the backward pass, and the same rows
lose the same elements however a step is cut into ranks, micro-batches and blocks that are computed again.

    state = mix(key + (stream + 1) g)                      64 bits, once for a row; lo and hi are its halves
    h = fmix(lo + column c, hi)                            32 bits, for every element

mix is the finaliser of splitmix64 (Steele, Lea and Flood 2014), fmix that of MurmurHash3 (Appleby), into
which hi enters half-way, without its last shift, which leaves the upper half of h as it is. Integers wrap
around; kernels and reference have the same ones, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flava_kernels import checks, dispatch
from flava_kernels.cases.dropout import cases
from flava_kernels.op import DTYPES, Limits, Op
from flava_kernels.packing import places

GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
COLUMN, FMIX_1, FMIX_2 = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35
"""g and c of the formula, and the factors of mix and fmix; all odd, so that no step loses information."""

LOW = 0xFFFFFFFF

LIMITS = {
    torch.float32: Limits(1e-7, 1e-7),
    torch.float16: Limits(5e-4, 5e-4),
    torch.bfloat16: Limits(3.5e-3, 3.5e-3),
}
"""A mask that differs in one element is far beyond them."""


def row_keys(seeds: Tensor, cu_seqlens: Tensor, total: int, stream: int) -> Tensor:
    """Returns the key of each packed row, from its sample's seed and its position in the sequence.

    Shapes:
        seeds       [b]    int64
        cu_seqlens  [b+1]  int32
        total              T = cu_seqlens[-1], known to the host
        stream             another one for each sequence that a sample has, e.g. for each of its views
        returns     [T]    int64
    """
    checks.sequences("row_keys", cu_seqlens, total, None)
    sequence, position = places(cu_seqlens, total)
    sample = mix64(seeds + _wrapped((stream + 1) * GAMMA))
    return mix64(sample.index_select(0, sequence) + (position + 1) * _wrapped(GAMMA))


def dropout(x: Tensor, keys: Tensor, stream: int, p: float) -> Tensor:
    """Drops elements of rows with probability `p`, and scales up the others.

    Shapes:
        x        [T d]
        keys     [T]    int64, see `row_keys`
        stream          from 0 to 2^31 - 1, another one for each place of the model
        returns  [T d]
    Raises: ValueError for a p outside [0, 1), another stream, or keys of another number than rows.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}; it must be at least 0 and less than 1")
    if not 0 <= stream < 2**31:
        raise ValueError(f"dropout: stream is {stream}; it must be at least 0 and less than 2^31")
    if keys.shape != x.shape[:1] or keys.dtype != torch.int64:
        raise ValueError(
            f"dropout: keys are {keys.dtype} {tuple(keys.shape)}, but int64 ({x.shape[0]},) is wanted, "
            "one for each row"
        )
    function = _dropout if dispatch.needs_custom_operator(x) else _Dropout.apply
    return function(x, keys, stream, p)


def supports(x: Tensor, keys: Tensor, stream: int, p: float) -> str | None:
    """Returns None, or why the kernel does not support these arguments."""
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}"
    if x.dim() != 2 or x.stride(-1) != 1:
        return f"x has shape {tuple(x.shape)} and strides {x.stride()}; it must be [T d] with contiguous rows"
    return None


def threshold_of(p: float) -> int:
    """Returns the smallest hash that keeps an element: 2^32 p, rounded."""
    return min(round(p * 2**32), LOW)


def mix64(value: Tensor) -> Tensor:
    """Scrambles 64-bit integers bijectively: int64 of any shape."""
    value = (value ^ _shifted(value, 30)) * _wrapped(MIX_1)
    value = (value ^ _shifted(value, 27)) * _wrapped(MIX_2)
    return value ^ _shifted(value, 31)


def kept(keys: Tensor, stream: int, p: float, columns: int) -> Tensor:
    """Returns True where an element stays: [T] -> [T d] bool. In int32, which halves what a CPU moves."""
    state = mix64(keys + _wrapped((stream + 1) * GAMMA))[:, None]
    column = torch.arange(columns, device=keys.device) * COLUMN
    hashed = state.to(torch.int32) + column.to(torch.int32)
    hashed.bitwise_xor_(_shifted(hashed, 16)).mul_(_wrapped(FMIX_1, 32))
    hashed.bitwise_xor_((state >> 32).to(torch.int32))
    hashed.bitwise_xor_(_shifted(hashed, 13)).mul_(_wrapped(FMIX_2, 32))
    # both sides less 2^31: signed integers compare as unsigned ones would
    return hashed.bitwise_xor_(-(2**31)) >= threshold_of(p) - 2**31


def reference(x: Tensor, keys: Tensor, stream: int, p: float) -> Tensor:
    """Multiplies and masks: [T d] -> [T d]."""
    return (x * (1 / (1 - p))).masked_fill_(~kept(keys, stream, p, x.shape[1]), 0)


def definition(x: Tensor, keys: Tensor, stream: int, p: float) -> Tensor:
    """Multiplies by the mask of zeros and ones, over 1 - p."""
    return x * kept(keys, stream, p, x.shape[1]).to(x.dtype) / (1 - p)


def _wrapped(value: int, bits: int = 64) -> int:
    """Returns the signed integer of so many bits with the same low bits."""
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Shifts to the right and fills with zeros, as for unsigned integers."""
    return (value >> bits) & (2 ** (8 * value.element_size() - bits) - 1)


def _drop(x: Tensor, keys: Tensor, stream: int, p: float) -> Tensor:
    if dispatch.use_triton("dropout", x, supports, x, keys, stream, p):
        from flava_kernels.triton_ops import dropout as kernels

        return kernels.dropout(x, keys, stream, p)
    return reference(x, keys, stream, p).contiguous()


_dropout = torch.library.custom_op("flava_kernels::dropout", _drop, mutates_args=())
_dropout.register_fake(lambda x, keys, stream, p: x.new_empty(x.shape))


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    # Not saved as a tensor: a checkpoint would compute all before it again only to get the keys it was given.
    _, ctx.keys, ctx.stream, ctx.p = inputs


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()  # the kernel takes whole rows only
    return dropout(grad, ctx.keys, ctx.stream, ctx.p), None, None, None


_dropout.register_autograd(_differentiate, setup_context=_keep)


class _Dropout(torch.autograd.Function):
    """`dropout` without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep(ctx, inputs, None)
        return _drop(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, grad)


OP = Op("dropout", dropout, definition, supports, cases, LIMITS, "flava_kernels.triton_ops.dropout")
