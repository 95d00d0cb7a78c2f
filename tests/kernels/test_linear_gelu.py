"""A linear layer with GELU: by hand, gradients, and what it keeps for the backward pass."""

import math

import flava_kernels.flops  # noqa: F401  registers the formulas
import kernel_checks
import pytest
import torch
from flava_kernels import dispatch
from flava_kernels import linear_gelu as module
from flava_kernels.linear_gelu import linear_gelu
from flava_kernels.op import DTYPES
from torch.utils.flop_counter import FlopCounterMode

BOTH = pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])


def example(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """hidden, weight and bias, all with gradient."""
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((6, 5), (7, 5), (7,))]


@BOTH
def test_by_hand(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    weight, bias = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
    y = linear_gelu(torch.tensor([[1.0], [-1.0], [0.0]]), weight, bias)
    expected = [
        [z * (1 + math.erf(z / math.sqrt(2))) / 2 for z in row]
        for row in ([1.0, 3.0], [-1.0, -1.0], [0.0, 1.0])
    ]
    torch.testing.assert_close(y, torch.tensor(expected))


@pytest.mark.triton
def test_the_kernels_at_the_ends_of_fp32(monkeypatch):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    hidden = torch.tensor([[math.inf], [3e38], [-3e38], [math.nan]], requires_grad=True)
    y = linear_gelu(hidden, torch.ones(1, 1), torch.zeros(1))
    y.backward(torch.ones(4, 1))
    assert y[0] == math.inf and y[1] == 3e38 and y[2] == 0 and y[3].isnan()
    assert hidden.grad[1] == 1 and hidden.grad[2] == 0


@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bias_s_gradient_adds_numbers_that_are_not_rounded(dtype):
    kernel_checks.gelu_backward_of_given_z(dtype)


def test_gradients():
    assert torch.autograd.gradcheck(linear_gelu, example(torch.float64))
    assert torch.autograd.gradcheck(
        lambda *inputs: torch.ops.flava_kernels.linear_gelu(*inputs)[0], example(torch.float64)
    )


@BOTH
def test_the_gradient_may_be_strided(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    for upstream in (torch.randn(7, 6).T, torch.randn(1, 7).expand(6, 7), torch.randn(6, 9)[:, 1:8]):
        ours, theirs = example(), example()
        linear_gelu(*ours).backward(upstream)
        module.definition(*theirs).backward(upstream)
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("custom", [False, True], ids=["eager", "custom operator"])
def test_keeps_the_pre_activation_alone(monkeypatch, custom):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    kept = []
    hidden, weight, bias = example()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        y = linear_gelu(hidden, weight, bias)
    wide = [tensor for tensor in kept if tensor.shape == y.shape]
    assert len(wide) == 1
    torch.testing.assert_close(wide[0], torch.nn.functional.linear(hidden, weight, bias))


@BOTH
def test_gelu_before_a_linear_layer_keeps_only_its_input(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    kept, z, weight, bias = [], *(tensor.detach() for tensor in example())
    ours = [tensor.clone().requires_grad_() for tensor in (z, weight, bias)]
    theirs = [tensor.clone().requires_grad_() for tensor in (z, weight, bias)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        out = module.gelu_linear(*ours)
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in ours[:2]]
    expected = torch.nn.functional.linear(torch.nn.functional.gelu(theirs[0]), *theirs[1:])
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    exact = {"rtol": 0, "atol": 0} if implementation == "torch" else {}
    torch.testing.assert_close(out, expected, **exact)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, **exact)


@pytest.mark.parametrize(("frozen", "products"), [((), 2), ((1, 2), 1), ((0, 1), 0)], ids=str)
def test_products_that_nobody_needs_are_left_out(frozen, products):
    inputs = [tensor.detach().requires_grad_(place not in frozen) for place, tensor in enumerate(example())]
    for function in (module._LinearGELU.apply, lambda *x: torch.ops.flava_kernels.linear_gelu(*x)[0]):
        out = function(*inputs)
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        assert counter.get_total_flops() == products * 2 * 6 * 5 * 7


def test_opcheck():
    hidden, weight, bias = example()
    torch.library.opcheck(torch.ops.flava_kernels.linear_gelu.default, (hidden, weight, bias))
    inputs = [tensor.detach() for tensor in (hidden, weight, bias)]
    for needs in ([True, True, True], [True, False, False]):
        torch.library.opcheck(
            torch.ops.flava_kernels.linear_gelu_backward.default,
            (torch.randn(6, 7), torch.randn(6, 7), *inputs, needs),
        )


def test_compiles_into_one_graph():
    ours, theirs = example(), example()
    out = torch.compile(lambda *inputs: linear_gelu(*inputs) * 2, fullgraph=True, backend="aot_eager")(*ours)
    expected = module.definition(*theirs) * 2
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def test_says_what_the_kernels_do_not_take():
    hidden, weight, bias = (tensor.detach() for tensor in example())
    assert module.supports(hidden, weight, bias) is None
    assert "float64" in module.supports(hidden.double(), weight.double(), bias.double())
    assert "[T d]" in module.supports(hidden[None], weight, bias)
