"""Every operator and case with the torch references, and again with the kernels in Triton's interpreter, against fp64 from the rounded inputs."""

import inspect
import os

import op_checks
import pytest
import torch
from flava_kernels import OPS, dispatch
from flava_kernels.op import Case, Op

EVERYTHING = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype)[6:]}") for op in OPS.values() for case in op.cases() for dtype in case.dtypes
]


@pytest.mark.parametrize(("op", "case", "dtype"), EVERYTHING)
def test_the_reference_equals_the_definition(monkeypatch, op: Op, case: Case, dtype: torch.dtype):
    monkeypatch.setenv("FLAVA_KERNELS", "torch")
    op_checks.check_case(op, case, dtype)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if "needs_custom_operator" in inspect.getsource(op.function)])
def test_the_custom_operator_equals_the_definition_with_its_reference(monkeypatch, name: str):
    """In eager mode these run their reference without a custom operator on a CPU, as the test before has it."""
    monkeypatch.setenv("FLAVA_KERNELS", "torch")
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)
    for case in OPS[name].cases():
        for dtype in case.dtypes:
            op_checks.check_case(OPS[name], case, dtype)


@pytest.mark.triton
@pytest.mark.parametrize(("op", "case", "dtype"), EVERYTHING)
def test_the_kernels_equal_the_definition(monkeypatch, op: Op, case: Case, dtype: torch.dtype):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    assert os.environ["TRITON_INTERPRET"] == "1", "the group 'triton' runs with TRITON_INTERPRET=1: use make test"
    unsupported = op.supports(**case.inputs(dtype))
    if unsupported:
        pytest.skip(unsupported)
    assert dispatch.unavailable("cpu") is None
    op_checks.check_case(op, case, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), EVERYTHING)
def test_the_kernels_equal_the_definition_on_the_gpu(monkeypatch, op: Op, case: Case, dtype: torch.dtype):
    monkeypatch.setenv("FLAVA_KERNELS", "auto")
    op_checks.check_case(op, case, dtype, "cuda")
