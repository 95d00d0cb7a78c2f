"""Arguments and gradients with the same numbers elsewhere in memory: an operator refuses them or is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import op_checks
import torch
from flava_kernels.op import Case, Op
from torch import Tensor


def by_columns(tensor: Tensor) -> Tensor:
    """The last two axes the other way round."""
    return tensor if tensor.dim() < 2 else tensor.detach().mT.contiguous().mT


def in_wider_rows(tensor: Tensor) -> Tensor:
    """Rows that are the first halves of others, with the largest numbers in the second halves."""
    tensor = tensor.detach()
    largest = (torch.finfo if tensor.is_floating_point() else torch.iinfo)(tensor.dtype).max
    return torch.stack([tensor, torch.full_like(tensor, largest)], -2).flatten(-2)[..., : tensor.shape[-1]]


def every_other(tensor: Tensor) -> Tensor:
    """Numbers with another one behind each."""
    return in_wider_rows(tensor.unsqueeze(-1)).squeeze(-1)


def repeated(tensor: Tensor) -> Tensor:
    """One number in all places, as the gradient of a sum is."""
    return tensor.detach().flatten()[0].expand(tensor.shape)


LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (by_columns, in_wider_rows, every_other)


def roomy_cases(op: Op) -> list[Case]:
    """For each set of differentiable arguments the first case without an axis of one or none, whose layouts
    would all be the same.
    """
    found: dict[tuple[str, ...], Case] = {}
    for case in op.cases():
        if case.differentiable not in found and _is_roomy(op, case):
            found[case.differentiable] = case
    return list(found.values())


def _is_roomy(op: Op, case: Case) -> bool:
    inputs = case.inputs(torch.float32)
    if any(
        isinstance(value, Tensor) and value.dim() > 1 and min(value.shape) < 2 for value in inputs.values()
    ):
        return False
    results = op.definition(**inputs)
    return all(result.numel() for result in (results if isinstance(results, tuple) else (results,)))


def check(op: Op, device: str = "cpu", *, kernels: bool) -> int:
    """Asserts that results and gradients in fp32 are those of contiguous tensors.

    One argument at a time lies elsewhere, then the upstream gradient. With `kernels`, arguments that
    `supports` refuses are left out: the reference gets them. Returns how many it has compared.
    """
    return sum(_check(op, case, device, kernels) for case in roomy_cases(op))


def _check(op: Op, case: Case, device: str, kernels: bool) -> int:
    compared = 0

    def run(moved: dict[str, Any], upstream: list[Tensor]) -> dict[str, Tensor]:
        inputs = case.inputs(torch.float32, device) | moved
        results, gradients = op_checks.results_and_gradients(
            op.function, inputs, case.differentiable, upstream
        )
        return {f"result {place}": result for place, result in enumerate(results)} | gradients

    plain = case.inputs(torch.float32, device)
    results = op.function(**plain)
    upstream = op_checks.upstream_of(list(results) if isinstance(results, tuple) else [results])
    upstream = [gradient.to(device) for gradient in upstream]
    expected = run({}, upstream)
    for name, value in plain.items():
        for layout in LAYOUTS if isinstance(value, Tensor) else ():
            moved = {name: layout(value).requires_grad_(value.requires_grad)}
            if kernels and op.supports(**plain | moved) is not None:
                continue
            _compare(run(moved, upstream), expected, f"{op.name}, {layout.__name__} {name}")
            compared += 1
    for layout in (*LAYOUTS, repeated):
        moved_upstream = [layout(gradient) if gradient.dim() else gradient for gradient in upstream]
        wanted = run({}, [gradient.contiguous() for gradient in moved_upstream])
        _compare(run({}, moved_upstream), wanted, f"{op.name}, {layout.__name__} of the gradient")
        compared += 1
    return compared


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{what}: {name}: {said}"
        )
