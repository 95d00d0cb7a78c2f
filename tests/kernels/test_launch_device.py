"""Kernels are launched on the GPU of their tensors, whichever is the current one."""

import ast
from pathlib import Path

import flava_kernels.triton_ops
import pytest
import torch
from flava_kernels.triton_ops.launch import on_its_device

FOLDER = Path(flava_kernels.triton_ops.__path__[0])


class OnAGpu:
    """What torch.cuda.device_of asks a tensor, since a machine without a GPU has none to ask."""

    is_cuda = True

    def get_device(self) -> int:
        return 3


def test_the_tensor_s_gpu_is_current_during_the_call(monkeypatch):
    current = [0]

    def exchange(index: int) -> int:
        before, current[0] = current[0], index
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    assert on_its_device(lambda first, more: (current[0], more))(OnAGpu(), more=1) == (3, 1)
    assert current == [0]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_public_function_that_launches_is_guarded(path):
    """Private ones are called by public ones."""
    bare = [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and any(isinstance(call, ast.Call) and _is_launch(call) for call in ast.walk(node))
        and "on_its_device" not in [ast.unparse(decorator) for decorator in node.decorator_list]
    ]
    assert not bare


def _is_launch(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Subscript) or ast.unparse(call.func) == "_statistics"


@pytest.mark.gpu
def test_tensors_of_a_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    from flava_kernels.layer_norm import layer_norm

    x, weight, bias = torch.randn(5, 64), torch.randn(64), torch.randn(64)
    y = layer_norm(*(tensor.to("cuda:1") for tensor in (x, weight, bias)), 1e-5)
    torch.testing.assert_close(y.cpu(), torch.nn.functional.layer_norm(x, (64,), weight, bias, 1e-5))
