"""Checks that hold for every operator of flava_kernels, on any device and with any implementation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from flava_kernels import dispatch
from flava_kernels.op import Case, Limits, Op
from torch import Tensor


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference||; infinite when anything is not finite that should be, the plain
    norm when the reference is zero.
    """
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    assert value.shape == reference.shape, f"{tuple(value.shape)} instead of {tuple(reference.shape)}"
    same_infinity = value.isinf() & (value == reference)
    value, reference = value.masked_fill(same_infinity, 0.0), reference.masked_fill(same_infinity, 0.0)
    if not bool(value.isfinite().all()):
        return float("inf")
    return float((value - reference).norm() / (reference.norm() if bool(reference.any()) else 1.0))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills every new uninitialised tensor with NaN (integers: the largest), so that a result that is not
    fully written shows.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def results_and_gradients(
    function: Any,
    inputs: dict[str, Any],
    differentiable: tuple[str, ...],
    upstream: list[Tensor] | None = None,
) -> tuple[list, dict]:
    """Calls `function`, then backpropagates `upstream` (drawn from a fixed seed when None) through its
    differentiable results.
    """
    results = function(**inputs)
    results = list(results) if isinstance(results, tuple) else [results]
    with_gradient = [result for result in results if result.requires_grad]
    upstream = upstream if upstream is not None else upstream_of(results)
    torch.autograd.backward(
        with_gradient, [g.to(r.dtype).to(r.device) for g, r in zip(upstream, with_gradient, strict=True)]
    )
    return [result.detach() for result in results], {name: inputs[name].grad for name in differentiable}


def upstream_of(results: list[Tensor]) -> list[Tensor]:
    """Draws one upstream gradient per differentiable result, in fp32 and exactly representable in bf16."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(result.shape, generator=generator).bfloat16().float()
        for result in results
        if result.requires_grad
    ]


def widened(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies the arguments to fp64 CPU leaves: the reference starts from the rounded values."""
    return {name: _widen(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _widen(value: Tensor) -> Tensor:
    copy = value.detach().cpu()
    copy = copy.double() if copy.is_floating_point() else copy
    return copy.requires_grad_(value.requires_grad)


def check_case(op: Op, case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Runs one case against fp64 twice; returns the errors. Asserts limits, full coverage of outputs, bitwise
    repetition, untouched inputs.
    """
    inputs = case.inputs(dtype, device)
    kernels = dispatch.implementation(device, op.supports(**inputs)) == "triton"
    limits = (not kernels and case.reference_limits.get(dtype)) or case.limits.get(dtype) or op.limits[dtype]
    before = {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    expected, expected_gradients = results_and_gradients(op.definition, widened(inputs), case.differentiable)
    with poisoned_memory():
        results, gradients = results_and_gradients(op.function, inputs, case.differentiable)
        again, gradients_again = results_and_gradients(
            op.function, case.inputs(dtype, device), case.differentiable
        )
    assert len(results) == len(expected), f"{len(results)} results instead of {len(expected)}"
    errors = {
        f"result {place}": relative_error(*pair)
        for place, pair in enumerate(zip(results, expected, strict=True))
    }
    errors |= {
        f"d {name}": relative_error(gradients[name], expected_gradients[name]) for name in case.differentiable
    }
    for what, error in errors.items():
        limit = _limit(limits, what, case)
        assert error <= limit, (
            f"{op.name}, {case.name}, {dtype}: error of {what} is {error:.2e}, allowed {limit:.0e}; all: "
            f"{errors}"
        )
    if kernels and dtype != torch.float32:
        eager = results_and_gradients(op.definition, case.inputs(dtype, device), case.differentiable)
        _check_against_eager(_named(results, gradients), _named(*eager), _named(expected, expected_gradients))
    for first, second in zip(
        [*results, *gradients.values()], [*again, *gradients_again.values()], strict=True
    ):
        assert torch.equal(first, second), f"{op.name}, {case.name}, {dtype}: two runs differ"
    for name, value in before.items():
        assert torch.equal(inputs[name].detach(), value), (
            f"{op.name}, {case.name}, {dtype}: the operator changed its input {name}"
        )
    return errors


def _limit(limits: Limits, what: str, case: Case) -> float:
    if not what.startswith("d "):
        return limits.result
    return limits.fp32_gradient if what.removeprefix("d ") in case.fp32 else limits.gradient


def _named(results: list, gradients: dict) -> dict[str, Tensor]:
    return {f"result {place}": result for place, result in enumerate(results)} | {
        f"d {name}": gradient for name, gradient in gradients.items()
    }


def _check_against_eager(ours: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Asserts flash-attention's rule: the largest error is at most 2 times (of gradients 3 times) that of the
    definition in the same dtype.

    Half a last place of the largest number is allowed in any case: the definition may hit a number exactly by
    chance. It says nothing of single numbers and of zeros, for the same reason, nor where the definition
    overflows.
    """
    for what, reference in exact.items():
        if reference.dim() and bool(reference.any()) and bool(eager[what].isfinite().all()):
            error, of_eager = (
                float((value[what].detach().double().cpu() - reference).abs().max())
                for value in (ours, eager)
            )
            unit = float(reference.abs().max()) * torch.finfo(ours[what].dtype).eps / 2
            allowed = (3 if what.startswith("d ") else 2) * max(of_eager, unit)
            assert error <= allowed, (
                f"{what} is {error:.2e} off, torch's own operations in that dtype {of_eager:.2e}"
            )
