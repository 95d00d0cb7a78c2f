"""Norms of gradients that are many numbers, as those of a real model are."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from flava_ds.training import deepspeed_fixes
from flava_ds.training.engine import Engine
from flava_ds.training.norms import MOST, ROW, squared_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_millions_of_offloaded_gradients_is_that_in_fp64(dtype):
    """A partition's gradient is one tensor on the host. torch's own fp32 norm of it is too small by 4e-4."""
    flat = torch.randn(10_000_000, dtype=dtype)
    alone = SimpleNamespace(size=1, rank=0)
    engine = object.__new__(Engine)  # no DeepSpeed behind it: its gradients are given below
    engine.loss, engine.world, engine.deepspeed = torch.zeros(()), alone, SimpleNamespace(optimizer=None)
    held = [({"active": True}, [flat], False)]
    with mock.patch.object(deepspeed_fixes, "local_gradients", return_value=held):
        norm = engine._global_norm()
    assert float(norm) == pytest.approx(float(torch.linalg.vector_norm(flat, dtype=torch.float64)), rel=1e-6)


def test_squares_of_all_elements_are_added_up_whatever_their_shapes():
    tensors = [torch.randn(()), torch.randn(3, ROW - 1).t(), torch.randn(3, MOST + 7).t(), torch.zeros(0, 2)]
    expected = sum(float(tensor.double().square().sum()) for tensor in tensors)
    assert float(squared_norm(tensors)) == pytest.approx(expected, rel=1e-6)
    assert squared_norm([torch.tensor([1.0, torch.inf])]).isinf()
    assert squared_norm([torch.tensor([1.0, torch.nan])]).isnan()
