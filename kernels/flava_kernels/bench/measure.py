"""Times, peak memory and errors of one implementation on one workload.

On a CPU: wall clock, with the input sets in turn; a very long call runs once, for both time and memory. On a
GPU: replays of CUDA graphs between events, with the L2 cache overwritten before each and the input sets in
turn; an implementation that cannot be captured is timed call by call, and the row says so. There the host's
time is measured too, which a replay hides: how long an eager call takes to return. Peak memory is
that of tensors: allocations seen by torch's profiler on a CPU, the caching allocator's report on a GPU.
Results and gradients count, inputs do not.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flava_kernels.op import Limits

Call = Callable[..., Any]
FLUSHED_BYTES = 2**28
"""More than any L2 cache."""


@dataclass
class Measurement:
    """Seconds of each round, peak bytes of the forward pass and of both passes, and the timing method.

    `host_forward` and `host_backward` are what eager calls keep the host of a GPU busy; empty on a CPU.
    """

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    forward_peak: int = 0
    peak: int = 0
    method: str = ""
    host_forward: list[float] = field(default_factory=list)
    host_backward: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Arguments:
    """One set of inputs: the call's keyword arguments, and which of them get a gradient."""

    inputs: dict[str, Any]
    differentiable: tuple[str, ...]

    def leaves(self) -> list[Tensor]:
        """The tensors that get a gradient."""
        return [self.inputs[name] for name in self.differentiable]


@dataclass(frozen=True)
class Effort:
    """Limits on timing one implementation: at least `least` rounds, then until `seconds` or `most`.

    On a CPU, a first run of more than `enough` seconds is the only one.
    """

    seconds: float
    least: int
    most: int
    enough: float = float("inf")


def measure(call: Call, sets: list[Arguments], effort: Effort, device: torch.device) -> Measurement:
    """Runs a call once for its memory, which also warms it up, then in rounds for its time."""
    gc.collect()
    if device.type == "cuda":
        found = Measurement()
        found.forward_peak, found.peak = _peak_on_gpu(call, sets[0])
        _time_on_gpu(call, sets, effort, found)
        time_host(call, sets, dataclasses.replace(effort, seconds=0.0), found)
        return found
    once = _trace(call, sets[0])
    if once.forward[0] + once.backward[0] > effort.enough:
        return once
    found = Measurement(forward_peak=once.forward_peak, peak=once.peak)
    _time_on_cpu(call, sets, effort, found)
    return found


def forward_and_upstream(call: Call, arguments: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """Calls; returns the differentiable results and the upstream gradient of each."""
    results = differentiable(call(**arguments.inputs))
    return results, [upstream_for(result) for result in results]


def differentiable(results: Any) -> list[Tensor]:
    """Returns the results of a call that have a gradient."""
    return [
        result
        for result in (results if isinstance(results, tuple) else (results,))
        if isinstance(result, Tensor) and result.requires_grad
    ]


def upstream_for(result: Tensor) -> Tensor:
    """Returns a result's upstream gradient: 1 for a scalar, else fixed random numbers exact in any dtype."""
    if result.dim() == 0:
        return torch.ones_like(result)
    generator = torch.Generator(result.device).manual_seed(1)
    drawn = torch.randn(result.shape, generator=generator, device=result.device)
    return drawn.bfloat16().to(result)


def backward(
    results: list[Tensor], upstream: list[Tensor], arguments: Arguments, *, keep: bool = False
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of the differentiable inputs."""
    return torch.autograd.grad(results, arguments.leaves(), upstream, retain_graph=keep, allow_unused=True)


def exact(definition: Call, arguments: Arguments) -> list[Tensor]:
    """Returns results and gradients of the definition in fp64, from the rounded inputs."""
    wide = {
        name: value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.inputs.items()
    }
    wide |= {name: wide[name].requires_grad_() for name in arguments.differentiable}
    return _results_and_gradients(definition, Arguments(wide, arguments.differentiable))


def error(call: Call, arguments: Arguments, reference: list[Tensor]) -> float:
    """Returns the largest ||x - reference|| / ||reference|| over results and gradients."""
    return max(errors(call, arguments, reference).values())


def errors(call: Call, arguments: Arguments, reference: list[Tensor]) -> dict[str, float]:
    """Returns ||x - reference|| / ||reference|| of each "result 0" and gradient "d weight"."""
    found = _results_and_gradients(call, arguments)
    results = len(found) - len(arguments.differentiable)
    names = [
        *(f"result {place}" for place in range(results)),
        *(f"d {name}" for name in arguments.differentiable),
    ]
    return {
        name: float((x.double() - y).norm() / y.norm())
        for name, x, y in zip(names, found, reference, strict=True)
    }


def beyond(found: dict[str, float], limits: dict[torch.dtype, Limits], arguments: Arguments) -> str:
    """Names the errors that an operator's limits, those of the first input's dtype, do not allow."""
    dtype = arguments.leaves()[0].dtype
    allows = limits[dtype]

    def allowed(what: str) -> float:
        if not what.startswith("d "):
            return allows.result
        stays = dtype != torch.float32 and arguments.inputs[what[2:]].dtype == torch.float32
        return allows.fp32_gradient if stays else allows.gradient

    wrong = [
        f"{what} is {value:.1e} off, {allowed(what):.1e} is allowed"
        for what, value in found.items()
        if not value <= allowed(what)
    ]
    return "; ".join(wrong)


def _results_and_gradients(call: Call, arguments: Arguments) -> list[Tensor]:
    results, upstream = forward_and_upstream(call, arguments)
    gradients = backward(results, upstream, arguments)
    missing = [
        name for name, gradient in zip(arguments.differentiable, gradients, strict=True) if gradient is None
    ]
    if missing:
        raise RuntimeError(f"no gradient for {', '.join(missing)}")
    return [result.detach() for result in results] + [one for one in gradients if one is not None]


def _trace(call: Call, arguments: Arguments) -> Measurement:
    """Runs once on a CPU: times, and peak bytes of tensors besides the inputs, forward and overall."""
    kept: dict[str, Any] = {}
    forward, events = _allocations(lambda: kept.update(results=differentiable(call(**arguments.inputs))))
    forward_peak, alive = _highest(events)
    upstream = [upstream_for(result) for result in kept["results"]]
    back, events = _allocations(lambda: kept.update(gradients=backward(kept["results"], upstream, arguments)))
    return Measurement(
        [forward], [back], forward_peak, max(forward_peak, alive + _highest(events)[0]), "wall clock, one run"
    )


def _allocations(work: Callable[[], Any]) -> tuple[float, list[int]]:
    """Returns the seconds, and the bytes of every CPU allocation (negative: release), in order."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return seconds, [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def _highest(events: list[int]) -> tuple[int, int]:
    """Returns the highest running sum and the last one."""
    alive = highest = 0
    for size in events:
        alive += size
        highest = max(highest, alive)
    return highest, alive


def _peak_on_gpu(call: Call, arguments: Arguments) -> tuple[int, int]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = differentiable(call(**arguments.inputs))
    forward_peak, alive = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated()
    upstream = [upstream_for(result) for result in results]
    before += torch.cuda.memory_allocated() - alive
    torch.cuda.reset_peak_memory_stats()
    backward(results, upstream, arguments)
    return forward_peak, max(forward_peak, torch.cuda.max_memory_allocated() - before)


def _rounds(effort: Effort) -> Iterator[int]:
    start = time.perf_counter()
    for number in range(effort.most):
        if number >= effort.least and time.perf_counter() - start > effort.seconds:
            return
        yield number


def _time_on_cpu(call: Call, sets: list[Arguments], effort: Effort, found: Measurement) -> None:
    found.method = "wall clock"
    upstream: list[Tensor] = []
    for number in _rounds(effort):
        arguments = sets[number % len(sets)]
        start = time.perf_counter()
        results = call(**arguments.inputs)
        found.forward.append(time.perf_counter() - start)
        results = differentiable(results)
        upstream = upstream or [upstream_for(result) for result in results]
        start = time.perf_counter()
        gradients = backward(results, upstream, arguments)
        found.backward.append(time.perf_counter() - start)
        del results, gradients


def time_host(call: Call, sets: list[Arguments], effort: Effort, found: Measurement) -> None:
    """Times eager calls until they return; between rounds the device finishes, so that no queue is full."""
    for number in _rounds(effort):
        arguments = sets[number % len(sets)]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        results = differentiable(call(**arguments.inputs))
        found.host_forward.append(time.perf_counter() - start)
        upstream = [upstream_for(result) for result in results]
        start = time.perf_counter()
        backward(results, upstream, arguments)
        found.host_backward.append(time.perf_counter() - start)


def _time_on_gpu(call: Call, sets: list[Arguments], effort: Effort, found: Measurement) -> None:
    for arguments in sets:
        backward(*forward_and_upstream(call, arguments), arguments)
    try:
        captured = [_capture(call, arguments) for arguments in sets]
        forward, back = [one[0].replay for one in captured], [one[1].replay for one in captured]
        found.method = "graph replay"
    except RuntimeError as refused:
        torch.cuda.synchronize()
        forward, back = _eager(call, sets)
        found.method = f"single calls, no graph: {str(refused).splitlines()[0][:80]}"
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    for times, calls in ((found.forward, forward), (found.backward, back)):
        for number in _rounds(effort):
            flushed.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            calls[number % len(calls)]()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)


def _capture(
    call: Call, arguments: Arguments
) -> tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph, list[Tensor]]:
    """Captures the forward pass, and the backward pass of another forward pass.

    Returns the latter's results and upstream gradients too. Replays read them, and all that was saved for the
    backward pass, where they were: keep them as long as the graphs, which hold no memory but their own. The
    next capture returns free memory to the device, so that a replay would read what is no longer mapped.
    """
    forward_graph, backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        backward(*forward_and_upstream(call, arguments), arguments)
        results, upstream = forward_and_upstream(call, arguments)
        backward(results, upstream, arguments, keep=True)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(backward_graph, stream=side):
        backward(results, upstream, arguments, keep=True)
    with torch.cuda.graph(forward_graph, stream=side):
        call(**arguments.inputs)
    return forward_graph, backward_graph, [*results, *upstream]


def _eager(call: Call, sets: list[Arguments]) -> tuple[list[Callable[[], Any]], list[Callable[[], Any]]]:
    prepared = [(*forward_and_upstream(call, arguments), arguments) for arguments in sets]
    forward = [partial(call, **arguments.inputs) for arguments in sets]
    return [*forward], [partial(backward, *items, keep=True) for items in prepared]
