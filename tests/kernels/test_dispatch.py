"""Which implementation a call gets, by FLAVA_KERNELS, the device and what the kernels take."""

import logging

import pytest
import torch
from flava_kernels import attention, dispatch, layer_norm, linear_gelu


@pytest.mark.parametrize(
    ("mode", "device", "interpret", "unsupported", "chosen"),
    [
        ("auto", "cuda", "0", None, "triton"),
        ("auto", "cuda", "0", "x is odd", "torch"),
        ("auto", "cpu", "1", None, "torch"),
        ("torch", "cuda", "0", None, "torch"),
        ("triton", "cuda", "0", None, "triton"),
        ("triton", "cpu", "1", None, "triton"),
        ("triton", "cpu", "0", None, "torch"),
    ],
)
def test_the_implementation(monkeypatch, mode, device, interpret, unsupported, chosen):
    monkeypatch.setenv("FLAVA_KERNELS", mode)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    assert dispatch.implementation(device, unsupported) == chosen


def test_a_refusal_under_triton_is_an_error_with_the_reason(monkeypatch):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.use_triton("pack", torch.zeros(1), lambda: None)
    with pytest.raises(
        dispatch.UnsupportedInputError,
        match="FLAVA_KERNELS=triton, but pack cannot run its kernels: x is odd",
    ):
        dispatch.use_triton("pack", torch.zeros(1), lambda: "x is odd")


def test_a_reference_on_a_cpu_says_nothing(monkeypatch, caplog):
    monkeypatch.setenv("FLAVA_KERNELS", "auto")
    with caplog.at_level(logging.WARNING):
        assert not dispatch.use_triton("pack", torch.zeros(1), lambda: "x is odd")
    assert not caplog.records


@pytest.mark.parametrize("way", ["layer_norm", "add_layer_norm", "linear_gelu", "gelu_linear", "attention"])
def test_an_eager_call_decides_once_for_both_passes(monkeypatch, way):
    """The operators of a block: what is asked in the forward pass holds in the backward pass."""
    asked = []
    monkeypatch.setenv("FLAVA_KERNELS", "auto")
    monkeypatch.setattr(dispatch, "runs_on_the_cpu", lambda example: False)
    monkeypatch.setattr(dispatch, "use_triton", lambda op, *arguments: asked.append(op))
    x, residual, weight = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    vector, bounds = torch.randn(4, requires_grad=True), torch.tensor([0, 1, 4], dtype=torch.int32)
    qkv = torch.randn(4, 3, 2, 8, requires_grad=True)
    results = {
        "layer_norm": lambda: layer_norm.layer_norm(x, vector, vector, 1e-5),
        "add_layer_norm": lambda: layer_norm.add_layer_norm(x, residual, vector, vector, 1e-5)[0],
        "linear_gelu": lambda: linear_gelu.linear_gelu(x, weight, vector),
        "gelu_linear": lambda: linear_gelu.gelu_linear(x, weight, vector),
        "attention": lambda: attention.varlen_attention(qkv, bounds, 3),
    }
    result = results[way]()
    assert len(asked) == 1
    result.sum().backward()
    assert len(asked) == 1 and (qkv if way == "attention" else x).grad.abs().sum() > 0
