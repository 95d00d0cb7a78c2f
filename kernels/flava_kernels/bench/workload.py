"""What a workload of the benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[torch.Generator, torch.dtype], dict[str, Any]]


@dataclass(frozen=True)
class Cost:
    """Minimum bytes moved (every tensor once) and floating-point operations, for an element size."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int


@dataclass(frozen=True)
class Workload:
    """One set of arguments of an operator.

    `draw` creates them on the generator's device. `cost` takes the bytes of an element. `ranks` is the number
    of ranks, one of which is simulated. `exact` enables measuring the error against fp64: for sizes where the
    fp64 definition fits memory and time.
    """

    op: str
    name: str
    draw: Draw
    differentiable: tuple[str, ...]
    cost: Callable[[int], Cost]
    ranks: int = 1
    exact: bool = True


def randn(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Draws in fp32 on the generator's device, and rounds."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(dtype)
