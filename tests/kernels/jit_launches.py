"""Launches every operator's kernels on CPU tensors as a GPU's driver would see it, up to the driver.

    python tests/kernels/jit_launches.py

Arguments are bound and specialised and kernels are compiled for sm_90 by Triton's own launch. A driver
without a device stands behind it, and what it would run is left out. Prints a line of JSON: the operators,
cases and dtypes, and how many binaries each kernel has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]
os.environ["FLAVA_KERNELS"] = "triton"

import other_layouts  # noqa: E402
import torch  # noqa: E402
from flava_kernels import OPS, checks, dispatch  # noqa: E402
from flava_kernels.op import Case, Op  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

MOST_OF_A_GRID = 65535
"""Programs along the second and third axis; CUDA takes 2^31 - 1 along the first."""


class NoDevice:
    """What Triton asks of a driver before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_only(binaries: dict[str, set[str]]) -> Callable[..., Any]:
    """Returns a launch that checks the grid, compiles, and notes the binary."""
    launch = JITFunction.run

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        made = launch(kernel, *arguments, grid=grid, warmup=True, **keywords)
        sizes = grid(keywords) if callable(grid) else grid
        assert all(isinstance(size, int) and size > 0 for size in sizes), (kernel.__name__, sizes)
        assert all(size <= MOST_OF_A_GRID for size in sizes[1:]), (kernel.__name__, sizes)
        binaries.setdefault(kernel.__name__, set()).add(made.hash)
        return made

    return run


def chosen(op: Op) -> list[Case]:
    """Returns cases with several rows of everything, and the one with the most numbers."""
    fitting = [case for case in op.cases() if {torch.float32, torch.bfloat16} <= set(case.dtypes)]

    def numbers(case: Case) -> int:
        return sum(x.numel() for x in case.inputs(torch.float32).values() if isinstance(x, torch.Tensor))

    return list(
        {case.name: case for case in (*other_layouts.roomy_cases(op), max(fitting, key=numbers))}.values()
    )


def main() -> None:
    """Calls every operator forward and backward."""
    binaries: dict[str, set[str]] = {}
    driver.set_active(NoDevice())
    dispatch.unavailable = lambda device_type: None
    checks.readable = lambda tensor: False  # as of a tensor on a GPU
    JITFunction.run = compile_only(binaries)
    called = []
    for op in OPS.values():
        for case in chosen(op):
            for dtype in (torch.float32, torch.bfloat16):
                inputs = case.inputs(dtype)
                assert op.supports(**inputs) is None, (op.name, case.name, dtype)
                results = op.function(**inputs)
                results = results if isinstance(results, tuple) else (results,)
                with_gradient = [result for result in results if result.requires_grad]
                torch.autograd.backward(with_gradient, [torch.zeros_like(result) for result in with_gradient])
                called.append([op.name, case.name, str(dtype).removeprefix("torch.")])
    print(json.dumps({"called": called, "binaries": {name: len(some) for name, some in binaries.items()}}))


if __name__ == "__main__":
    main()
