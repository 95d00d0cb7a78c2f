"""Checks of shapes, and of values that operators index with. A wrong one would read or write beyond a tensor
on a GPU.

Shapes are checked always. Values are where reading them costs nothing, on CPU tensors, and with
FLAVA_KERNELS_CHECK=1 on every device: there each call waits for the device once, so that is for finding an
error and not for training.
"""

from __future__ import annotations

import os
import weakref

import torch
from torch import Tensor

VARIABLE = "FLAVA_KERNELS_CHECK"
INTEGERS = (torch.int32, torch.int64)


class _Passed:
    """The cu_seqlens that passed last, with its version and what was promised of it: all layers of an encoder
    ask with the same one, and reading it again in each would cost a small model's step some per cent.
    """

    tensor: weakref.ref[Tensor] | None = None
    promised: tuple[object, ...] = ()

    def covers(self, tensor: Tensor, promised: tuple[object, ...]) -> bool:
        return self.tensor is not None and self.tensor() is tensor and self.promised == promised

    def note(self, tensor: Tensor, promised: tuple[object, ...]) -> None:
        self.tensor, self.promised = weakref.ref(tensor), promised


_passed = _Passed()


def shape(op: str, name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Raises ValueError if an argument has another shape than `wanted`, or is no tensor."""
    found = getattr(tensor, "shape", None)
    if found != wanted:
        told = f"is {tensor!r:.40}" if found is None else f"has shape {list(found)}"
        raise ValueError(f"{op}: {name} {told}, but {list(wanted)} is wanted")


def not_negative(op: str, name: str, value: float) -> None:
    """Raises ValueError for a number below zero, or for none."""
    if not value >= 0:
        raise ValueError(f"{op}: {name} is {value}; it must be at least 0")


def readable(tensor: Tensor) -> bool:
    """Returns True if a tensor's values may be read: they are on the host, or FLAVA_KERNELS_CHECK is 1."""
    return tensor.device.type == "cpu" or os.environ.get(VARIABLE) == "1"


def sequences(
    op: str, cu_seqlens: Tensor, rows: int, max_seqlen: int | None, *, equal_lengths: bool = False
) -> None:
    """Raises ValueError if cu_seqlens [b+1] is no tensor of integers, or does not cut `rows` into sequences
    of at most max_seqlen, where it can be read.
    """
    if getattr(cu_seqlens, "dtype", None) not in INTEGERS:
        found = getattr(cu_seqlens, "dtype", f"{cu_seqlens!r:.40}")
        raise ValueError(f"{op}: cu_seqlens is {found}; a tensor of int32 is wanted")
    _fit(op, cu_seqlens, rows, max_seqlen, equal_lengths)


def _fit(op: str, cu_seqlens: Tensor, rows: int, max_seqlen: int | None, equal_lengths: bool) -> None:
    """Reads a tensor once while it stays the same. Writing to it through NumPy goes unnoticed."""
    if not readable(cu_seqlens):
        return
    # A tensor made in inference mode has no version, so nobody can tell whether it has changed.
    version = None if cu_seqlens.is_inference() else cu_seqlens._version
    promised = (version, rows, max_seqlen, equal_lengths)
    if version is not None and _passed.covers(cu_seqlens, promised):
        return
    bounds = cu_seqlens.tolist()
    if not bounds or bounds[0] != 0:
        raise ValueError(f"{op}: cu_seqlens must start with 0, not with {bounds[:1]}")
    lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest < 0:
        raise ValueError(
            f"{op}: cu_seqlens must not fall, but sequence {lengths.index(shortest)} has {shortest} rows"
        )
    if bounds[-1] != rows:
        raise ValueError(f"{op}: cu_seqlens ends at {bounds[-1]}, but there are {rows} rows")
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(
            f"{op}: the longest sequence is {lengths.index(longest)} with {longest} rows, but at most "
            f"{max_seqlen} were promised (max_seqlen)"
        )
    if equal_lengths and max_seqlen is not None and shortest < max_seqlen:
        raise ValueError(
            f"{op}: equal_lengths promises {max_seqlen} rows, but sequence {lengths.index(shortest)} has "
            f"{shortest}"
        )
    _passed.note(cu_seqlens, promised)


def labels(op: str, given: Tensor, classes: int, ignored: int, rows: Tensor | None, number: int) -> None:
    """Raises ValueError for a label that is no class and not `ignored`, or for a row beyond `number`, or
    named twice.
    """
    if not readable(given) or not given.numel():
        return
    values = [*given.masked_fill(given == ignored, 0).aminmax()]
    if rows is not None:
        repeated = rows.sort().values.diff().eq(0).sum()
        values += [*rows.aminmax(), repeated]
    lowest, highest, *of_rows = torch.stack(values).tolist()
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"{op}: label {wrong} is none of {classes} classes; rows that do not count have {ignored}"
        )
    if of_rows and (of_rows[0] < 0 or of_rows[1] >= number):
        wrong = of_rows[0] if of_rows[0] < 0 else of_rows[1]
        raise ValueError(f"{op}: row {wrong} is named, but hidden has {number} rows")
    if of_rows and of_rows[2]:
        raise ValueError(f"{op}: {of_rows[2]} of the named rows repeat another; each may be named once")
