"""Softmax of a chunk of logits and, in its place, the gradient; one program per row.

The second pass over a row finds it in the L2 cache. The matrix product leaves out the bias, which is added
here. Rows start at multiples of 128 bytes, so that a vocabulary like 30,522 is read and written 16 bytes at a
time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.linear_cross_entropy import IGNORE_INDEX
from flava_kernels.triton_ops.launch import (
    ARCHITECTURES,
    Launch,
    ceil_div,
    next_power_of_2,
    on_its_device,
)

BLOCK, NUM_WARPS = 4096, 8
"""Classes per step, and warps."""

ROW_ALIGNMENT = 64
"""The row stride is a multiple of this many elements."""


@triton.jit
def _logits(ROW, BIAS, column, COLUMNS: tl.constexpr, MASKED: tl.constexpr):
    """Loads a block of z in fp32; -inf outside."""
    if MASKED:
        z = tl.load(ROW + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        z += tl.load(BIAS + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        return tl.where(column < COLUMNS, z, float("-inf"))
    return tl.load(ROW + column).to(tl.float32) + tl.load(BIAS + column).to(tl.float32)


@triton.jit
def _statistics(z, column, largest, total, beaten, label, target):
    """Adds a block to the running maximum, the sum of exponentials, and the places that beat the label.

    Equal logits before the label beat it: the first of several maxima counts as the prediction.
    """
    higher = tl.maximum(largest, tl.max(z, 0))
    total = total * tl.math.exp2((largest - higher) * 1.4426950408889634) + tl.sum(
        tl.math.exp2((z - higher) * 1.4426950408889634), 0
    )
    behind = (z < target) | ((z == target) & (column >= label))
    return higher, total, tl.where(behind, beaten, 1)


@triton.jit
def _gradient(z, column, largest, factor, label, count):
    """Returns count * (softmax - onehot), where factor = count / total."""
    return tl.math.exp2((z - largest) * 1.4426950408889634) * factor - tl.where(column == label, count, 0.0)


@triton.jit
def _softmax(
    LOGITS,
    BIAS,
    LABELS,
    LOSSES,
    RIGHT,
    stride,
    IGNORED: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    GRADIENTS: tl.constexpr,
):
    row = tl.program_id(0)
    ROW = LOGITS + row.to(tl.int64) * stride
    WHOLE: tl.constexpr = COLUMNS // BLOCK * BLOCK
    offsets = tl.arange(0, BLOCK)
    given = tl.load(LABELS + row)
    # An ignored row takes label 0 and is multiplied by 0, without a branch.
    count = tl.where(given == IGNORED, 0.0, 1.0)
    label = tl.where(given == IGNORED, 0, given).to(tl.int32)
    target = tl.load(ROW + label).to(tl.float32) + tl.load(BIAS + label).to(tl.float32)
    # Starting at the label's logit keeps -inf - -inf out of exp2; a NaN in it reaches the loss by target * 0.
    largest = target
    total = target * 0.0
    beaten = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, WHOLE, BLOCK):
        column = start + offsets
        z = _logits(ROW, BIAS, column, COLUMNS, False)
        largest, total, beaten = _statistics(z, column, largest, total, beaten, label, target)
    if WHOLE < COLUMNS:
        column = WHOLE + offsets
        z = _logits(ROW, BIAS, column, COLUMNS, True)
        largest, total, beaten = _statistics(z, column, largest, total, beaten, label, target)
    tl.store(LOSSES + row, (largest - target + tl.math.log(total)) * count)
    tl.store(RIGHT + row, (1 - tl.max(beaten, 0)).to(tl.float32) * count)
    if GRADIENTS:
        factor = count / total
        for start in range(0, WHOLE, BLOCK):
            column = start + offsets
            z = _logits(ROW, BIAS, column, COLUMNS, False)
            tl.store(
                ROW + column, _gradient(z, column, largest, factor, label, count).to(LOGITS.dtype.element_ty)
            )
        if WHOLE < COLUMNS:
            column = WHOLE + offsets
            z = _logits(ROW, BIAS, column, COLUMNS, True)
            tl.store(
                ROW + column,
                _gradient(z, column, largest, factor, label, count).to(LOGITS.dtype.element_ty),
                mask=column < COLUMNS,
            )


@on_its_device
def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns losses, correct rows and G of one chunk, like `forward_reference`; G's rows are padded."""
    rows, columns = labels.shape[0], weight.shape[0]
    padded = ceil_div(columns, ROW_ALIGNMENT) * ROW_ALIGNMENT
    # zeros in the interpreter: on CPUs with AMX, torch's bf16 product reads one element past an odd row
    make = torch.empty if hidden.is_cuda else torch.zeros
    logits = make((rows, padded), dtype=hidden.dtype, device=hidden.device)[:, :columns]
    torch.mm(hidden, weight.T, out=logits)
    losses, right = (torch.empty(rows, dtype=torch.float32, device=hidden.device) for _ in range(2))
    _softmax[(rows,)](
        logits, bias, labels, losses, right, padded, **_constants(columns, gradients),
        num_warps=NUM_WARPS, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return losses, right, logits


def _constants(columns: int, gradients: bool) -> dict[str, int | bool]:
    return {
        "IGNORED": IGNORE_INDEX,
        "COLUMNS": columns,
        "BLOCK": min(BLOCK, next_power_of_2(columns)),
        "GRADIENTS": gradients,
    }


def launches() -> tuple[Launch, ...]:
    """Returns the configurations for FLAVA's vocabulary (30,522) and codebook (8,192)."""
    shapes = [(dtype, columns, True) for dtype in ("bf16", "fp16", "fp32") for columns in (30522, 8192)] + [
        ("bf16", 30522, False)
    ]
    return tuple(_launch(arch, *shape) for arch in ARCHITECTURES for shape in shapes)


def _launch(arch: str, dtype: str, columns: int, gradients: bool) -> Launch:
    types = {
        "LOGITS": f"*{dtype}",
        "BIAS": f"*{dtype}",
        "LABELS": "*i64",
        "LOSSES": "*fp32",
        "RIGHT": "*fp32",
        "stride": "i32",
    }
    name = f"linear_cross_entropy.{'gradient' if gradients else 'loss'}.{dtype}.{columns}"
    once = 1 / 3 if gradients else 1 / 2  # the bias and, in the second pass, the logits are cached
    return Launch(name, _softmax, types, _constants(columns, gradients), NUM_WARPS, 1, arch, from_memory=once)
