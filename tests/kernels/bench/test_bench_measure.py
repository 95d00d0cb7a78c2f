"""Memory that is counted byte by byte, errors against fp64, and rounds."""

import contextlib
import time
import weakref
from unittest import mock

import pytest
import torch
from flava_kernels import contrastive
from flava_kernels.bench.measure import (
    Arguments,
    Effort,
    Measurement,
    _time_on_gpu,
    error,
    exact,
    measure,
    time_host,
)
from flava_kernels.bench.workloads import workloads

CPU = torch.device("cpu")
MIB = 2**20


def peak_bytes(call, arguments: Arguments) -> tuple[int, int]:
    found = measure(call, [arguments], Effort(0.0, 1, 1), CPU)
    return found.forward_peak, found.peak


def leaf(size: int) -> Arguments:
    return Arguments({"x": torch.ones(size).requires_grad_()}, ("x",))


def test_peak_memory_counts_what_is_alive_at_one_time():
    """exp keeps its result, so two results are alive; the way back adds the product's gradient and exp's."""
    forward, both = peak_bytes(lambda x: x.exp() * 2.0, leaf(MIB // 4))
    assert forward == pytest.approx(2 * MIB, abs=4096)
    assert both == pytest.approx(4 * MIB, abs=4096)


def test_memory_that_was_given_back_does_not_count():
    def call(x):
        for _ in range(5):
            torch.empty(MIB, dtype=torch.int8)
        return x * 2.0

    forward, _ = peak_bytes(call, leaf(64))
    assert forward == pytest.approx(MIB, abs=4096)


def test_the_contrastive_loss_never_holds_the_matrix(monkeypatch):
    monkeypatch.setattr(contrastive, "CHUNK_BYTES", MIB // 8)
    rows = 1024
    x = torch.nn.functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    inputs = {
        "image": x.clone().requires_grad_(),
        "text": x.clone().requires_grad_(),
        "log_scale": torch.ones(1),
        "row_mask": torch.ones(rows),
    }
    arguments = Arguments(inputs, ("image", "text"))
    assert peak_bytes(contrastive.info_nce, arguments)[1] < MIB
    assert peak_bytes(contrastive.definition, arguments)[1] >= 3 * 4 * rows**2


def test_error_is_relative_to_fp64_of_the_rounded_inputs():
    arguments = leaf(1000)
    reference = exact(lambda x: x * 3.0, arguments)
    assert reference[0].dtype == torch.float64
    assert error(lambda x: x * 3.0, arguments, reference) == 0.0
    assert error(lambda x: x * 3.03, arguments, reference) == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(RuntimeError, match="no gradient for y"):
        inputs = arguments.inputs | {"y": torch.ones(1000).requires_grad_()}
        error(lambda x, y: x * 3.0, Arguments(inputs, ("x", "y")), reference)


def test_rounds_take_inputs_in_turn_until_the_time_is_up():
    seen = []

    def call(x):
        seen.append(x)
        return x.sum()

    sets = [leaf(4) for _ in range(3)]
    found = measure(call, sets, Effort(1e9, 1, 7), CPU)
    assert len(found.forward) == len(found.backward) == 7 and min(found.forward) > 0
    assert [next(n for n, one in enumerate(sets) if one.inputs["x"] is x) for x in seen[1:]] == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]
    assert len(measure(call, sets, Effort(0.0, 2, 7), CPU).forward) == 2
    seen.clear()
    once = measure(call, sets, Effort(1e9, 2, 7, enough=0.0), CPU)
    assert (
        len(once.forward) == len(seen) == 1 and once.forward[0] > 0 and once.method == "wall clock, one run"
    )


def test_the_hosts_time_is_that_of_eager_calls_forward_and_backward():
    found, slept = Measurement(), []

    class Sleeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            slept.append(time.sleep(0.01))
            return grad

    time_host(lambda x: Sleeps.apply(x), [leaf(4)], Effort(0.0, 3, 7), found)
    assert len(found.host_forward) == len(found.host_backward) == len(slept) == 3
    assert 0 < min(found.host_forward) and 0.01 <= min(found.host_backward)


class Replayed:
    """A graph of a device without any: a replay notes which of the saved tensors are still there."""

    saved: list[weakref.ref] = []
    alive: list[int] = []

    def replay(self) -> None:
        self.alive.append(sum(tensor() is not None for tensor in self.saved))


def test_what_a_graph_reads_is_kept_while_it_is_replayed(monkeypatch):
    """A graph of a backward pass has the addresses of what the forward pass has saved, and no hold of it."""

    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            kept = x.exp()
            Replayed.saved.append(weakref.ref(kept))
            ctx.kept = kept
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.kept

    graphs = {"CUDAGraph": Replayed, "graph": lambda *_, **__: contextlib.nullcontext()}
    streams = {
        "Stream": mock.MagicMock,
        "current_stream": mock.MagicMock,
        "stream": lambda _: contextlib.nullcontext(),
    }
    events = {"Event": lambda **_: mock.MagicMock(elapsed_time=lambda _: 1.0), "synchronize": lambda: None}
    for name, stand_in in {**graphs, **streams, **events}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(1, dtype=dtype))
    found = Measurement()
    _time_on_gpu(lambda x: Saves.apply(x), [leaf(4), leaf(4)], Effort(0.0, 2, 2), found)
    assert found.method == "graph replay" and len(found.backward) == 2
    assert Replayed.alive == [2] * 4, "one of each set: that of the pass which the graph goes back through"


@pytest.mark.gpu
def test_graphs_are_replayed_on_the_gpu():
    device = torch.device("cuda")
    workload = workloads("layer_norm", "gpu")[0]
    sets = []
    for seed in range(2):
        inputs = workload.draw(torch.Generator(device).manual_seed(seed), torch.bfloat16)
        sets.append(
            Arguments(
                inputs | {name: inputs[name].requires_grad_() for name in workload.differentiable},
                workload.differentiable,
            )
        )
    from flava_kernels import OPS

    found = measure(OPS["layer_norm"].definition, sets, Effort(0.1, 3, 5), device)
    assert found.method == "graph replay" and min(found.forward + found.backward) > 0
    assert found.peak >= found.forward_peak >= sets[0].inputs["x"].nbytes
    assert len(found.host_forward) == len(found.host_backward) >= 3 and min(found.host_backward) > 0
