"""The budget notices every kind of regression, and nothing else."""

import json

import pytest
from flava_kernels import aot_budget

ROW = {
    "triton": "3.9",
    "arch": "sm_90",
    "name": "op.forward.bf16",
    "registers": 100,
    "spilled_bytes": 0,
    "shared": 4096,
    "tensor_memory": 0,
    "loads": 8,
    "loop_instructions": 300,
    "wide_loads": 6,
    "blocks": 5,
    "dots": 2,
    "matrix_instructions": 16,
}


@pytest.fixture
def budget(tmp_path):
    path = tmp_path / "budget.json"
    aot_budget.update(path, [ROW, ROW | {"triton": "3.6"}], partial=False)
    return path


def test_an_unchanged_row_passes(budget):
    assert aot_budget.regressions(budget, [ROW], partial=False) == []


@pytest.mark.parametrize(
    "change",
    [
        {"registers": 99, "loop_instructions": 200},
        {"wide_loads": 7, "blocks": 6},
    ],
)
def test_an_improvement_passes(budget, change):
    assert aot_budget.regressions(budget, [ROW | change], partial=False) == []


@pytest.mark.parametrize(
    "change",
    [
        *({name: ROW[name] + 1} for name in aot_budget.AT_MOST),
        *({name: ROW[name] - 1} for name in aot_budget.AT_LEAST),
        *({name: ROW[name] + step} for name in aot_budget.EXACTLY for step in (1, -1)),
    ],
    ids=str,
)
def test_a_regression_fails_with_the_row(budget, change):
    (problem,) = aot_budget.regressions(budget, [ROW | change], partial=False)
    ((name, value),) = change.items()
    assert f"{name} is {value}, allowed {ROW[name]}" in problem
    assert "triton 3.9, sm_90 op.forward.bf16" in problem and "loop_instructions" in problem


def test_kernels_without_a_budget_and_budgets_without_a_kernel_fail(budget):
    found = aot_budget.regressions(budget, [ROW | {"name": "op.backward.bf16"}], partial=False)
    assert len(found) == 2
    assert "op.backward.bf16 has no budget for triton 3.9" in found[0]
    assert "op.forward.bf16 is in the budget" in found[1]


def test_an_update_keeps_the_other_version(budget):
    aot_budget.update(budget, [ROW | {"name": "new"}], partial=False)
    table = json.loads(budget.read_text())
    assert list(table["3.9"]["sm_90"]) == ["new"]
    assert list(table["3.6"]["sm_90"]) == ["op.forward.bf16"]


def test_a_partial_update_keeps_the_other_rows(budget):
    aot_budget.update(budget, [ROW | {"name": "new"}], partial=True)
    assert list(aot_budget.load(budget)["3.9"]["sm_90"]) == ["new", "op.forward.bf16"]
