"""What an operator offers to tests, benchmarks and reports beside its public function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in; statistics and sums are fp32 always."""


@dataclass(frozen=True)
class Limits:
    """Largest relative error ||x - reference|| / ||reference|| against fp64 from the rounded inputs: of
    results, and of gradients.

    `fp32_gradient` is for parameters that stay fp32 whatever the dtype of the rest: their sums are not
    rounded to it on the way either.
    """

    result: float
    gradient: float
    fp32_gradient: float = 1e-6


@dataclass(frozen=True)
class Case:
    """One set of inputs to an operator.

    `make` draws the keyword arguments of the public function: fp64 CPU tensors, index tensors and plain
    values. `differentiable` names the tensors that get a gradient, `fp32` those floating tensors that stay
    fp32 in half precision.
    """

    name: str
    make: Callable[[torch.Generator], dict[str, Any]]
    differentiable: tuple[str, ...]
    fp32: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = DTYPES
    limits: dict[torch.dtype, Limits] = field(default_factory=dict)
    """Where a case is harder than the operator's own limits: huge logits, say."""
    reference_limits: dict[torch.dtype, Limits] = field(default_factory=dict)
    """Where torch's own functions, of which the reference is made, do worse than the kernels must."""

    def inputs(self, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0) -> dict[str, Any]:
        """Draws the arguments and rounds the floating tensors to `dtype`; the same seed gives the same
        numbers on every device.
        """
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

    `function` is the public one, `definition` the formula in plain differentiable torch for any dtype, with
    the same arguments and results: tests run it in fp64, benchmarks run it as the eager peer. `supports`
    takes the same arguments and returns None, or why the kernels do not take them. `cases` draws what tests
    run; `kernels` is the full name of the module with the kernels, which has `launches() -> tuple[Launch,
    ...]`.
    """

    name: str
    function: Callable[..., Any]
    definition: Callable[..., Any]
    supports: Callable[..., str | None]
    cases: Callable[[], tuple[Case, ...]]
    limits: dict[torch.dtype, Limits]
    kernels: str
