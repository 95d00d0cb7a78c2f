"""Operators under torch.autocast: the dtypes that torch gives its own operators there, and its gradients."""

import contextlib

import op_checks
import pytest
import torch
import torch.nn.functional as F
from flava_kernels import OPS, autocast, dispatch
from flava_kernels.attention import varlen_attention
from flava_kernels.layer_norm import add_layer_norm, layer_norm
from flava_kernels.linear_cross_entropy import linear_cross_entropy
from flava_kernels.linear_gelu import linear_gelu
from torch._subclasses.fake_tensor import FakeTensorMode

CASES = {
    "varlen_attention": "to-16",
    "varlen_cross_attention": "without",
    "layer_norm": "37x64",
    "add_layer_norm": "37x64",
    "linear_gelu": "37x24",
    "gelu_linear": "37x24",
    "linear_cross_entropy": "7",
    "info_nce": "70-masked",
    "sigmoid_loss": "70-masked",
    "fuse_sequences": "mixed",
}
"""An operator's case, by the start of its name, in fp32."""


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("custom", [False, True], ids=["function", "custom operator"])
@pytest.mark.parametrize("name", CASES)
def test_autocast_on_a_cpu_gives_torch_s_dtypes_and_gradients(monkeypatch, name, custom, inside):
    """Against the definition, which is made of torch's own operators, in fp32 without autocast."""
    if custom:
        monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)
    op = OPS[name]
    case = next(case for case in op.cases() if case.name.startswith(CASES[name]))
    inputs, plain = case.inputs(torch.float32), case.inputs(torch.float32)
    expected, expected_gradients = op_checks.results_and_gradients(op.definition, plain, case.differentiable)
    with torch.autocast("cpu", torch.bfloat16):
        cast = op.definition(**case.inputs(torch.float32))
        results = op.function(**inputs)
        results, cast = (x if isinstance(x, tuple) else (x,) for x in (results, cast))
    upstream = op_checks.upstream_of(list(results))
    with torch.autocast("cpu", torch.bfloat16) if inside else contextlib.nullcontext():
        with_gradient = [result for result in results if result.requires_grad]
        torch.autograd.backward(
            with_gradient, [g.to(r.dtype) for g, r in zip(upstream, with_gradient, strict=True)]
        )
    if name not in ("info_nce", "sigmoid_loss"):  # whose definitions would round logits
        assert [result.dtype for result in results] == [result.dtype for result in cast]
    for result, reference in zip(results, expected, strict=True):
        if result.requires_grad:
            assert op_checks.relative_error(result, reference) < 1e-2
    for argument in case.differentiable:
        assert inputs[argument].grad.dtype == torch.float32
        assert op_checks.relative_error(inputs[argument].grad, expected_gradients[argument]) < 2e-2


@pytest.fixture
def autocast_of_a_gpu():
    """Autocast of cuda, whose context manager turns itself off without one."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)


def test_autocast_on_a_gpu_gives_torch_s_dtypes(autocast_of_a_gpu):
    """With tensors that have a GPU's type and no data: what the dispatcher and the fakes say."""
    with FakeTensorMode():
        shapes = (6, 8), (6, 8), (8,), (8,), (9, 8), (9,)
        x, residual, weight, bias, wide, own = (torch.empty(*shape, device="cuda") for shape in shapes)
        half, bounds = x.bfloat16(), torch.empty(2, dtype=torch.int32, device="cuda")
        norm = F.layer_norm(half, (8,), weight, bias)
        assert layer_norm(half, weight, bias, 1e-5).dtype == norm.dtype == torch.float32
        y, total = add_layer_norm(half, residual, weight, bias, 1e-5)
        assert (y.dtype, total.dtype) == (norm.dtype, (half + residual).dtype)
        product = F.gelu(F.linear(x, wide, own))
        assert linear_gelu(x, wide, own).dtype == product.dtype == torch.bfloat16
        labels = torch.empty(6, dtype=torch.int64, device="cuda")
        loss, _ = linear_cross_entropy(x, wide, own, labels)
        assert loss.dtype == F.cross_entropy(F.linear(x, wide), labels).dtype == torch.float32
        qkv, q = torch.empty(6, 3, 2, 32, device="cuda"), torch.empty(1, 2, 6, 32, device="cuda")
        expected = F.scaled_dot_product_attention(q, q, q)
        assert varlen_attention(qkv, bounds, 6).dtype == expected.dtype == torch.bfloat16


def test_without_autocast_nothing_is_cast():
    x, half = torch.zeros(2), torch.zeros(2).half()
    for cast in (autocast.like_linear, autocast.like_layer_norm, autocast.like_cat):
        assert all(after is before for after, before in zip(cast(x, half), (x, half), strict=True))
