"""A device that is as strict as a GPU and computes on the CPU.

Its tensors are CPU tensors in disguise. A tensor of the CPU takes part in none of their operations, but for
what CUDA allows, and their values reach the host only through operations for which a GPU's host would wait;
these are counted. What it cannot show is whatever runs at another time than it is asked for.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.allclose,
}
"""What a host waits for: their results, or the shapes of these, are values of the device."""
INDEXES = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
TAKES_CPU = {aten.copy_, aten._to_copy, *INDEXES}
"""Takes tensors of the CPU beside those of a device, at the price of a copy."""


class _Module(_DummyBackendModule):
    """What torch.checkpoint asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


@functools.cache
def device() -> torch.device:
    """Returns the device, which is made once in a process: before a backward pass of it, and before modules
    that use inference mode are imported.
    """
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module())
    for name, kernel in (("empty_strided", _empty_strided), ("_copy_from", _copy_from)):
        _KERNELS.impl(name, kernel, "PrivateUse1")
    torch.inference_mode = torch.no_grad  # a disguise cannot be made of what inference mode makes
    return torch.device(NAME, 0)


_KERNELS = torch.library.Library("aten", "IMPL")
"""For torch.tensor, which makes its result without asking a dispatch mode."""


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> OnDevice:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: OnDevice, non_blocking: bool = False) -> OnDevice:
    target.there.copy_(source)
    return target


class OnDevice(Tensor):
    """A tensor of the device; `there` is the CPU tensor that it disguises."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor, requires_grad: bool = False) -> OnDevice:
        self = Tensor._make_wrapper_subclass(
            cls,
            there.size(),
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            device=device(),
            requires_grad=requires_grad,
        )
        self.there = there
        return self

    def __repr__(self) -> str:
        return f"OnDevice({self.there})"

    @property
    def data(self) -> OnDevice:  # what ZeRO gives parameters: a part of another tensor's memory
        return OnDevice(self.there.detach())

    @data.setter
    def data(self, value: OnDevice) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.there = value.there.detach()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes the tensors that are asked for on the device, and notes what the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {}, self.waits)


@contextmanager
def pretend_gpu() -> Iterator[Counter[str]]:
    """Lets tensors be made on the device, and yields the places where the host has waited for it."""
    device()
    with _Factories() as mode:
        yield mode.waits


def run(function: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str] | None = None) -> Any:
    """Runs an operation, on the device if one of its tensors is there or its result is asked for there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    wanted = kwargs.get("device")
    to_device = wanted is not None and torch.device(wanted).type == NAME
    if not there and not to_device:
        return function(*args, **kwargs)
    packet = function.overloadpacket
    if there and packet not in TAKES_CPU and (strangers := _refused(function, args, tensors)):
        raise RuntimeError(f"{function} was given a tensor of the CPU, of shape {tuple(strangers[0].shape)}")
    to_host = packet is aten._to_copy and wanted is not None and not to_device
    to_host |= packet is aten.copy_ and not isinstance(args[0], OnDevice)
    sized = packet in INDEXES and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    sized |= packet is aten.repeat_interleave and kwargs.get("output_size") is None
    if waits is not None and (to_host or sized or packet in READS):
        waits[f"{packet.__name__} {_caller()}"] += 1
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.there, (args, kwargs))
    if to_device:
        plain_kwargs["device"] = torch.device("cpu")
    plain_kwargs.pop("pin_memory", None)
    result = function(*plain_args, **plain_kwargs)
    if to_host:
        return args[0] if packet is aten.copy_ else result
    known = {id(tensor.there): tensor for tensor in there}
    return tree_map_only(
        Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else OnDevice(tensor), result
    )


def _refused(function: Any, args: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Returns the tensors of the CPU that CUDA would not take beside its own: all but numbers in elementwise
    operations, unless the result is to be written there.
    """
    elementwise = torch.Tag.pointwise in function.tags
    written = args[0] if function._schema.is_mutable and args else None
    return [
        tensor
        for tensor in tensors
        if not isinstance(tensor, OnDevice) and (tensor.ndim or not elementwise or tensor is written)
    ]


def _caller() -> str:
    """Returns the line of the package that has asked."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if {"flava_ds", "flava_kernels"} & set(path.parts) and "site-packages" not in path.parts:
            return f"{path.parent.name}/{path.name}:{frame.lineno}"
    return "elsewhere"


def moved(module: torch.nn.Module) -> None:
    """Moves a module's parameters and buffers to the device, as new tensors."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = torch.nn.Parameter(OnDevice(parameter.detach().clone()), parameter.requires_grad)
                part._parameters[name] = there
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer.clone())
