"""Runs a task's step on the meta device, where tensors have shapes but no data, and notes what it would cost.

Every operator passes through the dispatcher, so that this works for any family and objective. Saved and live
bytes are counted from storages: a tensor that is a view of another counts once.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OURS = "flava_kernels"
READ_BY_ROWS = ("index_select", "embedding", "index", "gather")
"""Operators that read as many rows of their first argument as they write."""


@dataclass
class Call:
    """One operator of a traced step. `product` holds (rows, columns, inner) of a matrix product."""

    name: str
    phase: str
    custom: bool
    flops: float
    bytes: float
    product: tuple[int, int, int] | None
    seconds: float = 0.0
    """CPU time of the thread that called it; on other devices that of the launch."""


@dataclass
class Trace:
    """What one micro-step did."""

    calls: list[Call] = field(default_factory=list)
    saved: int = 0
    peak: int = 0
    peak_with_gradients: int = 0
    """The same if the weights' gradients stay."""


class _Live:
    """Counts the bytes of storages that are alive, apart from those that were there before."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        self.ignored = {id(tensor.untyped_storage()) for tensor in before}
        self.kept = [tensor.untyped_storage() for tensor in before]  # so that no id is used again
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.bytes = self.peak = self.gradients = self.peak_with_gradients = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self.ignored or storage in self.seen:
            return
        size = storage.nbytes()
        self.seen.add(storage)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self.peak_with_gradients = max(self.peak_with_gradients, self.bytes + self.gradients)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


class _Recorder(TorchDispatchMode):
    """Notes the cost of every operator called inside `with`."""

    def __init__(self, live: _Live, length_variance: float) -> None:
        super().__init__()
        import flava_kernels.flops  # noqa: F401  registers our operators' formulas; it loads triton
        from torch.utils.flop_counter import flop_registry

        self.formulas, self.live, self.length_variance = flop_registry, live, length_variance
        self.calls: list[Call] = []
        self.phase = "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        begun = time.thread_time()
        out = func(*args, **kwargs)
        took = time.thread_time() - begun
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in results:
            self.live.add(tensor)
        if results and not _is_view(func):
            self._note(func, args, kwargs, out, results, took)
        return out

    def _note(
        self, func: Any, args: tuple, kwargs: dict, out: Any, results: list[Tensor], took: float
    ) -> None:
        name = func._schema.name.split("::")[1]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in READ_BY_ROWS:
            inputs = [*inputs[1:], *results]
        moved = sum(map(_bytes, inputs)) + sum(map(_bytes, results))
        flops, product = 0.0, None
        formula = self.formulas.get(func._overloadpacket)
        if name.startswith("convolution"):
            flops, product = _convolution(name, args, results)
        elif formula is not None:
            flops = float(formula(*args, **kwargs, out_val=out))
            if "attention" in name:
                flops *= attention_share(args, self.length_variance)
            else:
                product = _product(name, inputs, flops)
        ours = func.namespace == OURS
        self.calls.append(Call(name, self.phase, ours, flops, float(moved), product, took))


def _is_view(func: Any) -> bool:
    """True if the operator returns a view of its input and moves nothing."""
    aliases = [result.alias_info for result in func._schema.returns]
    return all(alias is not None and not alias.is_write for alias in aliases)


def _bytes(tensor: Tensor) -> int:
    """Returns the bytes of a tensor's elements; an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _product(name: str, inputs: list[Tensor], flops: float) -> tuple[int, int, int]:
    """Returns the edges of the matrix product of an operator whose FLOPs are known.

    An operator with several products of the same three numbers, in other roles, counts as one of them.
    """
    shapes = [tuple(tensor.shape) for tensor in inputs if tensor.ndim >= 2]
    if name == "addmm":
        shapes = shapes[-2:]
    if len(shapes) >= 2 and len(shapes[0]) == len(shapes[1]) == 2 and name in ("mm", "addmm"):
        return shapes[0][0], shapes[1][1], shapes[0][1]
    rows, inner = shapes[0][0], shapes[0][-1]
    return rows, max(1, round(flops / (2 * rows * inner))), inner


def _convolution(name: str, args: tuple, results: list[Tensor]) -> tuple[float, tuple[int, int, int]]:
    """Returns the FLOPs of a convolution, or of its gradients that are asked for, and its product's edges.

    torch's own formula of the backward pass counts the weights' gradient as if there were one group, which
    for the depthwise convolutions of an EfficientNet is hundreds of times too much.
    """
    if name == "convolution_backward":
        out, inputs, weight, transposed, gradients = args[0], args[1], args[2], args[7], sum(args[-1][:2])
    else:
        out, inputs, weight, transposed, gradients = results[0], args[0], args[1], args[6], 1
    places = inputs if transposed else out
    rows, inner = places.numel() // places.shape[1], weight[0].numel()
    return gradients * 2.0 * places.numel() * inner, (rows, places.shape[1], inner)


def attention_share(args: tuple, variance: float) -> float:
    """Returns the products that attention really needs over those of sequences as long as the longest.

    The mean length follows from the shapes. Lengths differ by the texts in them, so they all have the texts'
    variance.
    """
    qkv = next(a for a in args if isinstance(a, Tensor) and a.ndim == 4)
    bounds, *of_keys = [a for a in args if isinstance(a, Tensor) and a.ndim == 1 and a.dtype == torch.int32]
    if of_keys:  # cross-attention, whose queries and keys have lengths of their own
        queries = next(a for a in args if isinstance(a, Tensor) and a.ndim == 3)
        most_queries, most_keys = (a for a in args if type(a) is int)
        pairs = queries.shape[0] * qkv.shape[0] / (bounds.shape[0] - 1)
        return pairs / ((bounds.shape[0] - 1) * most_queries * most_keys)
    longest, equal, causal = next(
        (a, b, c)
        for a, b, c in zip(args, args[1:], args[2:], strict=False)
        if type(a) is int and type(b) is bool
    )
    mean = qkv.shape[0] / (bounds.shape[0] - 1)
    square = mean**2 + (0.0 if equal else variance)
    if causal:
        return (square + mean) / (longest * (longest + 1))
    return square / longest**2


def trace_step(
    module: nn.Module, forward: Callable[[], Tensor], inputs: Iterable[Tensor], length_variance: float
) -> Trace:
    """Runs `forward`, which returns the loss, and its backward pass, and returns what they cost.

    Gradients of weights are dropped as soon as they exist: where they go depends on the ZeRO stage.
    `peak_with_gradients` is for the one in which they stay where they are.
    """
    parameters = list(module.parameters())
    live = _Live([*parameters, *module.buffers(), *inputs])
    trace = Trace()
    held: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in live.ignored and id(storage) not in held:
            held[id(storage)] = storage
            trace.saved += storage.nbytes()
        return tensor

    def drop(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.gradients += parameter.grad.untyped_storage().nbytes()
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in parameters if p.requires_grad]
    try:
        with _Recorder(live, length_variance) as recorder:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = forward()
            held.clear()
            recorder.phase = "backward"
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    trace.calls, trace.peak = recorder.calls, live.peak
    trace.peak_with_gradients = live.peak_with_gradients
    return trace
