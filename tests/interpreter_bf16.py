"""Repairs bfloat16 in Triton's interpreter, for tests. conftest installs it where TRITON_INTERPRET=1.

The interpreter keeps bf16 values as raw 16-bit integers. Its matrix product and its arithmetic work on those
integers, and its conversion to bf16 cuts off instead of rounding to nearest even. Here bf16 operands are
widened to fp32, which is exact, and results are rounded as a GPU does; for + - * / and the square root that
gives the correctly rounded bf16 result, because fp32 has more than twice its digits. test_interpreter_bf16.py
notices when upstream no longer needs this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder


def install() -> None:
    """Replaces the interpreter's conversions, arithmetic and matrix product; a second call does nothing."""
    if Builder.create_dot.__module__ == __name__:
        return
    Builder.cast_impl = _cast(Builder.cast_impl)
    Builder.create_fp_to_fp = _convert(Builder.create_fp_to_fp)
    Builder.binary_op = _widening(Builder.binary_op)
    Builder.unary_op = _widening(Builder.unary_op)
    Builder.ternary_op = _widening(Builder.ternary_op, exact_on_bits=(np.where,))
    Builder.create_fma = _refusing(Builder.create_fma, "fma")
    Builder.create_dot = _dot(Builder.create_dot)
    Builder.get_bf16 = lambda self, value: Handle(rounded(np.array([value], np.float32)), tl.bfloat16)


def widened(bits: np.ndarray) -> np.ndarray:
    """Returns the fp32 values of bf16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """Returns the bf16 bit patterns of fp32 values, rounded to nearest even; every NaN becomes
    the quiet one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(np.shape(values))
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def _is_bf16(handle: Any) -> bool:
    """A comparison's result carries the type of its operands over truth values, so the data's type counts as
    well.
    """
    return (
        isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16
    )


def _widen(handle: Any) -> Any:
    return Handle(widened(handle.data), tl.float32) if _is_bf16(handle) else handle


def _cast(upstream: Callable[..., Handle]) -> Callable[..., Handle]:
    @functools.wraps(upstream, assigned=())
    def cast_impl(self: Builder, source: Handle, wanted: Any) -> Handle:
        if wanted.scalar != tl.bfloat16:
            return upstream(self, _widen(source), wanted)
        return source if _is_bf16(source) else Handle(rounded(source.data.astype(np.float32)), tl.bfloat16)

    return cast_impl


def _convert(upstream: Callable[..., Handle]) -> Callable[..., Handle]:
    @functools.wraps(upstream, assigned=())
    def create_fp_to_fp(self: Builder, source: Handle, wanted: Any, rounding: Any) -> Handle:
        if wanted.scalar == tl.bfloat16 and rounding != interpreter._ir.ROUNDING_MODE.RTZ:
            return self.cast_impl(source, wanted)
        return upstream(self, source, wanted, rounding)

    return create_fp_to_fp


def _widening(upstream: Callable[..., Handle], exact_on_bits: tuple[Any, ...] = ()) -> Callable[..., Handle]:
    @functools.wraps(upstream, assigned=())
    def operation(self: Builder, *arguments: Any) -> Handle:
        *operands, function = arguments
        if function in exact_on_bits or not any(map(_is_bf16, operands)):
            return upstream(self, *arguments)
        result = upstream(self, *map(_widen, operands), function).data
        return Handle(result if result.dtype == np.bool_ else rounded(result), tl.bfloat16)

    return operation


def _dot(upstream: Callable[..., Handle]) -> Callable[..., Handle]:
    @functools.wraps(upstream, assigned=())
    def create_dot(self: Builder, left: Handle, right: Handle, start: Handle, *options: Any) -> Handle:
        if _is_bf16(start):
            raise NotImplementedError(
                "the repaired interpreter has no matrix product that sums in bf16: sum in fp32"
            )
        return upstream(self, _widen(left), _widen(right), start, *options)

    return create_dot


def _refusing(upstream: Callable[..., Handle], name: str) -> Callable[..., Handle]:
    @functools.wraps(upstream, assigned=())
    def operation(self: Builder, *operands: Handle) -> Handle:
        if any(map(_is_bf16, operands)):
            raise NotImplementedError(f"the repaired interpreter has no {name} of bf16 numbers: upcast first")
        return upstream(self, *operands)

    return operation
