"""LayerNorm by its formula and beside a residual."""

import op_checks
import pytest
import torch
from flava_kernels import layer_norm as module
from flava_kernels.layer_norm import add_layer_norm, layer_norm

BOTH = pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])


def example(rows: int = 6, columns: int = 10, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """x, residual, weight and bias, all with gradient."""
    torch.manual_seed(0)
    return [
        torch.randn(*shape, dtype=dtype, requires_grad=True)
        for shape in ((rows, columns), (rows, columns), (columns,), (columns,))
    ]


def first(results, number: int) -> tuple[torch.Tensor, ...]:
    """The results that have a gradient."""
    return results if isinstance(results, torch.Tensor) else results[:number]


def test_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    weight, bias = torch.tensor([1.0, 2.0, 1.0, 1.0]).double(), torch.tensor([0.0, 0.0, 5.0, 0.0]).double()
    expected = torch.tensor([[-2.0, -2.0, 0.0, 3.0]]).double() / (3.5 + 0.5) ** 0.5 + bias
    torch.testing.assert_close(layer_norm(x, weight, bias, 0.5), expected)
    y, total = add_layer_norm(x / 4, x * 3 / 4, weight, bias, 0.5)
    torch.testing.assert_close((y, total), (expected, x))


def test_gradients():
    x, residual, weight, bias = example(3, 5, torch.float64)
    for functions in (
        (layer_norm, add_layer_norm),
        (torch.ops.flava_kernels.layer_norm, torch.ops.flava_kernels.add_layer_norm),
    ):
        assert torch.autograd.gradcheck(
            lambda *inputs, f=functions[0]: first(f(*inputs, 1e-5), 1), (x, weight, bias)
        )
        assert torch.autograd.gradcheck(
            lambda *inputs, f=functions[1]: first(f(*inputs, 1e-5, x_bias=None), 2),
            (x, residual, weight, bias),
        )


@BOTH
@pytest.mark.parametrize("used", ["y", "sum"])
def test_a_result_that_nobody_uses_adds_no_gradient(monkeypatch, implementation, used):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    ours, theirs = example(), example()
    y, total = add_layer_norm(*ours, 1e-5)
    expected_y, expected_total = module.add_layer_norm_definition(*theirs, 1e-5)
    ours_used, theirs_used = (y, expected_y) if used == "y" else (total, expected_total)
    ours_used.square().sum().backward()
    theirs_used.square().sum().backward()
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)


@BOTH
def test_rows_and_gradients_may_be_strided(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    x, residual, weight, bias = example(6, 20)
    views, copies = (
        [x[::2, :9], residual[1::2, 3:12]],
        [
            x.detach()[::2, :9].clone().requires_grad_(),
            residual.detach()[1::2, 3:12].clone().requires_grad_(),
        ],
    )
    results = add_layer_norm(*views, weight[:9], bias[:9], 1e-5)
    expected = module.add_layer_norm_definition(*copies, weight[:9].detach(), bias[:9].detach(), 1e-5)
    torch.testing.assert_close(results, expected)
    upstream = torch.randn(9, 3).T, torch.randn(1, 9).expand(3, 9)
    torch.autograd.backward(results, upstream)
    torch.autograd.backward(expected, upstream)
    torch.testing.assert_close(x.grad[::2, :9], copies[0].grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(residual.grad[1::2, 3:12], copies[1].grad, rtol=1e-4, atol=1e-6)


def test_half_precision_adds_parameter_gradients_in_fp32():
    """torch's own backward pass on CPUs adds the rows in bf16 and is 5 % off here."""
    x, _, weight, bias = (tensor.detach().bfloat16().requires_grad_() for tensor in example(2000, 8))
    grad = torch.randn(2000, 8).bfloat16()
    layer_norm(x, weight, bias, 1e-6).backward(grad)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    module.layer_norm_definition(*wide, 1e-6).backward(grad.double())
    for ours, reference in zip((weight, bias), wide[1:], strict=True):
        assert op_checks.relative_error(ours.grad, reference.grad) < 4e-3


@pytest.mark.triton
def test_frozen_parameters_cost_no_launch(monkeypatch):
    from flava_kernels.triton_ops import layer_norm as kernels

    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    monkeypatch.setattr(kernels, "_parameter_gradients", None)  # a launch would be an error
    x, residual, weight, bias = example()
    y, _ = add_layer_norm(x, residual, weight.detach(), bias.detach(), 1e-5)
    y.sum().backward()
    assert x.grad is not None
    with pytest.raises(TypeError):
        add_layer_norm(x, residual, weight, bias, 1e-5)[0].sum().backward()


def test_opcheck():
    x, residual, weight, bias = example()
    torch.library.opcheck(torch.ops.flava_kernels.layer_norm.default, (x, weight, bias, 1e-5))
    for x_bias in (None, torch.randn(10, requires_grad=True)):
        torch.library.opcheck(
            torch.ops.flava_kernels.add_layer_norm.default, (x, residual, weight, bias, 1e-5, x_bias)
        )
    statistics = module.forward_reference(x.detach(), residual.detach(), weight.detach(), bias.detach(), 1e-5)
    grad = torch.randn(6, 10)
    for grad_total, x_bias in ((None, None), (grad, torch.randn(10))):
        parameters = weight.detach(), bias.detach(), grad_total is not None
        torch.library.opcheck(
            torch.ops.flava_kernels.layer_norm_backward.default,
            (grad, grad_total, *statistics[1:], *parameters, x_bias),
        )


def test_compiles_into_one_graph():
    ours, theirs = example(), example()

    def chain(function, normalise, x, residual, weight, bias):
        y, total = function(x, residual, weight, bias, 1e-5)
        return normalise(y + total, weight, bias, 1e-5)

    out = torch.compile(chain, fullgraph=True, backend="aot_eager")(add_layer_norm, layer_norm, *ours)
    expected = chain(module.add_layer_norm_definition, module.layer_norm_definition, *theirs)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_may_rely_on_the_layout_of_results():
    """Its code asserts the strides that the fake has."""
    x, weight, bias = torch.randn(10, 6).T, torch.randn(10), torch.randn(10)
    # the key of a cached graph says nothing of our fakes
    with torch._inductor.config.patch(force_disable_caches=True):
        out = torch.compile(lambda x: layer_norm(x, weight, bias, 1e-5) * 2 + 1, fullgraph=True)(x)
    torch.testing.assert_close(out, module.layer_norm_definition(x, weight, bias, 1e-5) * 2 + 1)


def test_says_what_the_kernels_do_not_take():
    x, residual, weight, bias = (tensor.detach() for tensor in example())
    assert module.add_layer_norm_supports(x, residual, weight, bias, 1e-5) is None
    assert module.layer_norm_supports(x.bfloat16(), weight, bias, 1e-5) is None
    assert "float64" in module.layer_norm_supports(x.double(), weight, bias, 1e-5)
    assert "bfloat16" in module.layer_norm_supports(x, weight.bfloat16(), bias, 1e-5)
    assert "strides (1, 6)" in module.layer_norm_supports(torch.zeros(10, 6).T, weight, bias, 1e-5)
    assert "8193" in module.layer_norm_supports(
        torch.zeros(1, 8193), torch.zeros(8193), torch.zeros(8193), 1e-5
    )
    assert "contiguous" in module.layer_norm_supports(x, torch.zeros(20)[::2], bias, 1e-5)
    assert "residual" in module.add_layer_norm_supports(x, residual[:1], weight, bias, 1e-5)
