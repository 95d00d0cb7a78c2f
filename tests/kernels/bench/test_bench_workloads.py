"""Shapes for every operator, arguments that it takes, costs by hand."""

import inspect

import pytest
import torch
from flava_kernels import OPS
from flava_kernels.bench.workloads import SIZES, workloads


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_every_operator_has_workloads_with_its_arguments(op, size):
    found = workloads(op, size)
    assert found and len({workload.name for workload in found}) == len(found)
    for workload in found:
        assert set(workload.differentiable) <= set(inspect.signature(OPS[op].function).parameters)
        cost = workload.cost(4)
        assert (
            min(cost.forward_bytes, cost.backward_bytes) > 0
            and min(cost.forward_flops, cost.backward_flops) >= 0
        )


@pytest.mark.parametrize("op", OPS)
def test_the_operator_takes_what_is_drawn(op):
    for workload in workloads(op, "quick"):
        first, again, other = (
            workload.draw(torch.Generator().manual_seed(seed), torch.float32) for seed in (0, 0, 1)
        )
        OPS[op].function(**first)
        name = workload.differentiable[0]
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_costs_by_hand():
    (dense, ragged, causal, _), (norm,) = (
        workloads("varlen_attention", "quick"),
        workloads("layer_norm", "quick"),
    )
    assert dense.cost(2).forward_flops == 4 * 3 * 9**2 * 2 * 32
    assert dense.cost(2).forward_bytes == 4 * 27 * 2 * 32 * 2
    assert ragged.cost(2).forward_flops < dense.cost(2).forward_flops
    assert causal.cost(2).forward_flops == 4 * 3 * 45 * 2 * 32
    assert causal.cost(2).backward_flops == 10 * 3 * 45 * 2 * 32
    assert causal.cost(2).forward_bytes == dense.cost(2).forward_bytes
    assert norm.cost(4).forward_bytes == 2 * 64 * 32 * 4
    (dropped,) = workloads("dropout", "quick")
    assert dropped.cost(2).forward_bytes == dropped.cost(2).backward_bytes == 2 * 64 * 32 * 2 + 64 * 8
    (activated,) = workloads("gelu_linear", "quick")
    assert activated.cost(2).forward_flops == 2 * 16 * 32 * 8
    assert activated.cost(2).forward_bytes == 2 * (16 * 32 + 32 * 8 + 16 * 8)  # z, the weights, the result
    # z again, its gradient, the gradient of the result, the weights and theirs
    assert activated.cost(2).backward_bytes == 2 * (2 * 16 * 32 + 16 * 8 + 2 * 32 * 8)
    (crossed,) = workloads("varlen_cross_attention", "quick")
    queries = crossed.draw(torch.Generator(), torch.float32)["q"].shape[0]
    assert crossed.cost(2).forward_flops == 4 * queries * 7 * 2 * 32
    assert crossed.cost(2).backward_bytes == 2 * crossed.cost(2).forward_bytes == 4 * (queries + 21) * 64 * 2
    alone, one_of_three = workloads("info_nce", "quick")
    assert alone.cost(4).forward_flops == 2 * 24 * 24 * 16
    assert one_of_three.cost(4).forward_flops == 2 * (2 * 12 * 36 * 16)


def test_an_unknown_operator_has_none():
    assert workloads("no such operator", "quick") == ()
