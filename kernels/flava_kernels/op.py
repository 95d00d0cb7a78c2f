"""What an operator provides for tests, benchmarks and reports besides its public function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of the kernels; statistics and sums are always fp32."""


@dataclass(frozen=True)
class Limits:
    """Largest relative errors ||x - reference|| / ||reference||, of results and of gradients.

    The reference is fp64 on the rounded inputs. `fp32_gradient` is for parameters that stay fp32 whatever the
    other dtypes: their sums are not rounded.
    """

    result: float
    gradient: float
    fp32_gradient: float = 1e-6


@dataclass(frozen=True)
class Case:
    """One set of inputs of an operator.

    `make` draws the keyword arguments of the public function: fp64 CPU tensors, index tensors and plain
    values. `differentiable` names the tensors that get a gradient, `fp32` the floating-point tensors that
    stay fp32 when the others are half precision.
    """

    name: str
    make: Callable[[torch.Generator], dict[str, Any]]
    differentiable: tuple[str, ...]
    fp32: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = DTYPES
    limits: dict[torch.dtype, Limits] = field(default_factory=dict)
    """For cases that are harder than the operator's own limits allow, e.g. huge logits."""
    reference_limits: dict[torch.dtype, Limits] = field(default_factory=dict)
    """Where torch's own functions, which the reference uses, are less accurate than the kernels must be."""

    def inputs(self, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0) -> dict[str, Any]:
        """Draws the arguments, floating-point tensors rounded to `dtype`; equal seeds give equal numbers."""
        drawn = self.make(torch.Generator().manual_seed(seed))
        return {name: self._place(name, value, dtype, device) for name, value in drawn.items()}

    def _place(self, name: str, value: Any, dtype: torch.dtype, device: str | torch.device) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            value = value.to(torch.promote_types(dtype, torch.float32) if name in self.fp32 else dtype)
        return value.to(device).requires_grad_(name in self.differentiable)


@dataclass(frozen=True)
class Op:
    """An operator.

    `function` is the public function, `definition` the formula in plain differentiable torch for any dtype,
    with the same arguments and results: tests run it in fp64, benchmarks as the eager peer. `supports` takes
    the same arguments and returns None, or why the kernels do not support them. `cases` returns the tests'
    inputs; `kernels` is the full name of the kernels' module, which has `launches() -> tuple[Launch, ...]`.
    """

    name: str
    function: Callable[..., Any]
    definition: Callable[..., Any]
    supports: Callable[..., str | None]
    cases: Callable[[], tuple[Case, ...]]
    limits: dict[torch.dtype, Limits]
    kernels: str
