"""Which implementation a call gets, by FLAVA_KERNELS, the device and what the kernels take."""

import logging

import pytest
import torch
from flava_kernels import dispatch


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
