"""Every operator and case with the torch references, and again with the kernels in Triton's interpreter,
against fp64 from the rounded inputs; and arguments that lie in memory in other ways.
"""

import inspect
import os

import case_record
import op_checks
import other_layouts
import pytest
import rotation
import torch
from flava_kernels import OPS, dispatch
from flava_kernels.op import Case, Op
from torch.utils._python_dispatch import TorchDispatchMode

EVERYTHING = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype)[6:]}")
    for op in OPS.values()
    for case in op.cases()
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("op", "case", "dtype"), EVERYTHING)
def test_the_reference_equals_the_definition(monkeypatch, op: Op, case: Case, dtype: torch.dtype):
    monkeypatch.setenv("FLAVA_KERNELS", "torch")
    op_checks.check_case(op, case, dtype)


@pytest.mark.parametrize(
    "name", [name for name, op in OPS.items() if "needs_custom_operator" in inspect.getsource(op.function)]
)
def test_the_custom_operator_equals_the_definition_with_its_reference(monkeypatch, name: str):
    """In eager mode these run their reference without a custom operator on a CPU, as the test
    before has it."""
    monkeypatch.setenv("FLAVA_KERNELS", "torch")
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)
    for case in OPS[name].cases():
        for dtype in case.dtypes:
            op_checks.check_case(OPS[name], case, dtype)


class CustomOperators(TorchDispatchMode):
    """Notes the calls of our custom operators, those of backward passes among them, with copies of their
    arguments.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace == "flava_kernels":
            self.calls.append(
                (
                    function,
                    tuple(
                        value.detach() if isinstance(value, torch.Tensor) else value for value in arguments
                    ),
                )
            )
        return function(*arguments, **(keywords or {}))


def column_major(value):
    """The same numbers with the last two axes the other way round in memory."""
    if not isinstance(value, torch.Tensor):
        return value
    return other_layouts.by_columns(value).requires_grad_(value.requires_grad)


WITH_CUSTOM_OPERATORS = [name for name in OPS if name != "gelu_linear"]  # the compiler has its layers


@pytest.mark.parametrize("name", WITH_CUSTOM_OPERATORS)
def test_fakes_have_the_layout_of_results_for_any_layout_of_inputs(monkeypatch, name: str):
    """A compiler trusts the strides of a fake: it would read the real tensor at other places."""
    op = OPS[name]
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)
    for case in other_layouts.roomy_cases(op):
        inputs = {argument: column_major(value) for argument, value in case.inputs(torch.float32).items()}
        results = op.function(**inputs)
        upstream = [
            column_major(gradient)
            for gradient in op_checks.upstream_of(list(results) if isinstance(results, tuple) else [results])
        ]
        with CustomOperators() as operators:
            op_checks.results_and_gradients(op.function, inputs, case.differentiable, upstream)
        assert len(operators.calls) >= (1 if name == "sigmoid_loss" else 2)  # its backward pass is torch's
        for function, arguments in operators.calls:
            torch.library.opcheck(function, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.triton
@pytest.mark.parametrize(
    ("op", "case"),
    [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases()],
)
def test_the_kernels_equal_the_definition(monkeypatch, full, op: Op, case: Case):
    """In every dtype that they take, or in one where nothing has changed since all were recorded."""
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    assert os.environ["TRITON_INTERPRET"] == "1", (
        "the group 'triton' runs with TRITON_INTERPRET=1: use make test"
    )
    assert dispatch.unavailable("cpu") is None
    record = {} if full else case_record.read()
    dtypes = case_record.to_run(op, case, record, rotation.commit())
    if not dtypes:
        pytest.skip(op.supports(**case.inputs(case.dtypes[0])))
    for dtype in dtypes:
        op_checks.check_case(op, case, dtype)


BY_NAME = pytest.mark.parametrize("op", [pytest.param(op, id=f"{op.name}-") for op in OPS.values()])


@BY_NAME
def test_the_reference_takes_any_layout(monkeypatch, op: Op):
    monkeypatch.setenv("FLAVA_KERNELS", "torch")
    other_layouts.check(op, kernels=False)


@pytest.mark.triton
@BY_NAME
def test_the_kernels_take_any_layout_that_they_do_not_refuse(monkeypatch, op: Op):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    assert other_layouts.check(op, kernels=True) > len(other_layouts.LAYOUTS)


@pytest.mark.triton
def test_a_layout_that_is_read_wrong_is_found(monkeypatch):
    from flava_kernels.triton_ops import linear_gelu

    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    dense = linear_gelu.forward
    monkeypatch.setattr(
        linear_gelu, "forward", lambda z: dense(z.as_strided(z.shape, (z.shape[1], 1), z.storage_offset()))
    )
    with pytest.raises(AssertionError, match="gelu_linear, by_columns z: result 0"):
        other_layouts.check(OPS["gelu_linear"], kernels=True)


@pytest.mark.parametrize(
    ("custom", "implementation"),
    [
        (False, "torch"),
        (True, "torch"),
        pytest.param(False, "triton", marks=pytest.mark.triton),
    ],
)
@pytest.mark.parametrize(
    ("op", "case"),
    [
        pytest.param(op, case, id=f"{op.name}-{case.name}")
        for op in OPS.values()
        for case in {
            case.differentiable: case for case in reversed(op.cases()[1:]) if "no rows" not in case.name
        }.values()
        if len(case.differentiable) > 1
    ],
)
def test_a_gradient_alone_equals_the_one_among_all(monkeypatch, op, case, custom, implementation):
    """Inputs that need none get none, whatever was left out for that."""
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    if custom:
        monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)
    _, gradients = op_checks.results_and_gradients(
        op.function, case.inputs(torch.float32), case.differentiable
    )
    for needed in case.differentiable:
        inputs = case.inputs(torch.float32)
        for argument in case.differentiable:
            inputs[argument].requires_grad_(argument == needed)
        results = op.function(**inputs)
        results = [x for x in (results if isinstance(results, tuple) else (results,)) if x.requires_grad]
        torch.autograd.backward(results, op_checks.upstream_of(results))
        assert [argument for argument in case.differentiable if inputs[argument].grad is not None] == [needed]
        torch.testing.assert_close(inputs[needed].grad, gradients[needed], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "case", "dtype"), EVERYTHING)
def test_the_kernels_equal_the_definition_on_the_gpu(monkeypatch, op: Op, case: Case, dtype: torch.dtype):
    """With FLAVA_KERNELS=triton, so that no reference can pass in the place of a kernel."""
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    unsupported = op.supports(**case.inputs(dtype, "cuda"))
    if unsupported:
        pytest.skip(unsupported)
    op_checks.check_case(op, case, dtype, "cuda")


@pytest.mark.gpu
@BY_NAME
def test_any_layout_that_is_not_refused_is_right_on_the_gpu(monkeypatch, op: Op):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    other_layouts.check(op, "cuda", kernels=True)
