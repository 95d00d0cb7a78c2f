"""Operators that sum the gradient of a linear layer's bias, against the layer that sums it itself."""

import pytest
import torch
import torch.nn.functional as F
from flava_kernels import attention_reference, dispatch, folded_bias
from flava_kernels.attention import varlen_attention
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.layer_norm import add_layer_norm
from op_checks import relative_error
from torch import Tensor

LENGTHS = (5, 0, 9, 33)
ROWS, HEADS, SIZE = sum(LENGTHS), 2, 64


def norm(x: Tensor, x_bias: Tensor | None, others: list[Tensor]) -> tuple[Tensor, ...]:
    residual, weight, bias = others
    return add_layer_norm(x, residual, weight, bias, 1e-5, x_bias)


def normalised(x: Tensor, x_bias: Tensor | None, others: list[Tensor]) -> tuple[Tensor, ...]:
    return norm(x, x_bias, others)[:1]


def summed(x: Tensor, x_bias: Tensor | None, others: list[Tensor]) -> tuple[Tensor, ...]:
    return norm(x, x_bias, others)[1:]


def added(x: Tensor, x_bias: Tensor | None, others: list[Tensor]) -> tuple[Tensor, ...]:
    return (folded_bias.add(x, others[0], x_bias),)


def attend(x: Tensor, x_bias: Tensor | None, others: list[Tensor]) -> tuple[Tensor, ...]:
    qkv, cu_seqlens = x.unflatten(1, (3, HEADS, SIZE)), cu_seqlens_of(LENGTHS)
    return (varlen_attention(qkv, cu_seqlens, max(LENGTHS), qkv_bias=x_bias),)


def attend_causally(x: Tensor, x_bias: Tensor | None, others: list[Tensor]) -> tuple[Tensor, ...]:
    qkv, cu_seqlens = x.unflatten(1, (3, HEADS, SIZE)), cu_seqlens_of((ROWS,))
    return (varlen_attention(qkv, cu_seqlens, ROWS, equal_lengths=True, causal=True, qkv_bias=x_bias),)


BEHIND = pytest.mark.parametrize("behind", [norm, normalised, summed, added, attend, attend_causally])


def results_and_gradients(behind, folds: bool, dtype, frozen: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Of a linear layer with `behind` behind it; of the others' parameters where it has some."""
    torch.manual_seed(0)
    width = 3 * HEADS * SIZE
    shapes = {
        "hidden": (ROWS, 24), "W": (width, 24), "b": (width,),
        "residual": (ROWS, width), "weight": (width,), "bias": (width,),
    }  # fmt: skip
    inputs = {name: torch.randn(*shape).to(dtype) for name, shape in shapes.items()}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in frozen)
    hidden, weight, bias, *others = inputs.values()
    x = F.linear(hidden, weight, bias.detach() if folds else bias)
    found = behind(x, bias if folds else None, others)
    torch.autograd.backward(found, [torch.randn(one.shape).to(one.dtype) for one in found])
    gradients = {f"d {name}": tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
    return {f"result {place}": one.detach() for place, one in enumerate(found)} | gradients


@BEHIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("longest", [0, 5], ids=["computed again", "kept"])
def test_on_a_cpu_all_gradients_are_those_of_the_layer_bit_for_bit(monkeypatch, behind, dtype, longest):
    monkeypatch.setattr(attention_reference, "LONGEST_KEPT", longest)
    whole, folded = (results_and_gradients(behind, folds, dtype) for folds in (False, True))
    assert whole.keys() == folded.keys() and "d b" in whole
    for name, expected in whole.items():
        assert torch.equal(folded[name], expected), name


@BEHIND
@pytest.mark.parametrize("frozen", [("b",), ("weight", "bias"), ("hidden", "W")], ids=" ".join)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(behind, frozen):
    whole, folded = (results_and_gradients(behind, folds, torch.float32, frozen) for folds in (False, True))
    assert whole.keys() == folded.keys() and not {f"d {name}" for name in frozen} & folded.keys()
    for name, expected in whole.items():
        assert torch.equal(folded[name], expected), name


@BEHIND
@pytest.mark.parametrize(
    ("custom", "implementation"), [(True, "torch"), pytest.param(False, "triton", marks=pytest.mark.triton)]
)
@pytest.mark.parametrize("frozen", [(), ("weight", "bias")], ids=["", "frozen"])
def test_results_stay_bit_for_bit_elsewhere_and_the_sum_is_close(
    monkeypatch, behind, custom, implementation, frozen
):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    if custom:
        monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)
    whole, folded = (results_and_gradients(behind, folds, torch.float32, frozen) for folds in (False, True))
    assert whole.keys() == folded.keys()
    for name, expected in whole.items():
        if name == "d b":
            assert relative_error(folded[name], expected) < 2e-6
        else:
            assert torch.equal(folded[name], expected), name


@pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])
def test_sequences_without_rows_add_nothing(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    bias = torch.randn(3 * SIZE, requires_grad=True)
    for lengths in ((), (0, 0, 0)):
        qkv = torch.zeros(0, 3, 1, SIZE, requires_grad=True)
        varlen_attention(qkv, cu_seqlens_of(lengths), 0, qkv_bias=bias).sum().backward()
        assert bias.grad is not None and not bias.grad.any()


@pytest.mark.parametrize("behind", [norm, attend])
def test_under_autocast_the_bias_keeps_its_dtype(behind):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, folded = (results_and_gradients(behind, folds, torch.float32) for folds in (False, True))
    assert folded["d b"].dtype == torch.float32 and folded["result 0"].dtype == whole["result 0"].dtype
    assert relative_error(folded["d b"], whole["d b"]) < 1e-2


def test_a_definition_changes_no_number():
    rows, bias = torch.randn(4, 3, 1, 5), torch.randn(15, requires_grad=True)
    assert torch.equal(folded_bias.definition(rows, bias), rows)
    folded_bias.definition(rows, bias).sum().backward()
    assert bias.grad.tolist() == [4.0] * 15


def test_says_which_bias_the_kernels_do_not_take():
    rows = torch.zeros(4, 3, 1, 5)
    assert folded_bias.unfitting("b", None, rows) is None
    assert folded_bias.unfitting("b", torch.zeros(15), rows) is None
    assert folded_bias.unfitting("b", torch.zeros(3, 1, 5).bfloat16(), rows) is None
    assert "b is torch.float32 (5,)" in folded_bias.unfitting("b", torch.zeros(5), rows)
    assert "float64" in folded_bias.unfitting("b", torch.zeros(15).double(), rows)
