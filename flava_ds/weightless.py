"""Modules without weights, or before they get those of a file: no initial ones are drawn."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Built = TypeVar("Built", bound=nn.Module)
DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_)
"""Initialisations that a mode can stand in for. Truncated normals and Xavier's are drawn nevertheless."""


@contextmanager
def weightless() -> Iterator[None]:
    """Makes what is built within it on the meta device: names and shapes, which need no memory.

    A draw would change nothing there, but the first one loads torch's compiler, in a second or two.
    """
    with torch.device("meta"), _Undrawn():
        yield


def undrawn(build: Callable[[], Built]) -> Built:
    """Returns what `build` returns, for a caller who loads its whole state dict: to draw flava_base's first
    takes some seconds. A module with parameters that no state dict brings is built with all of them drawn.
    """
    with _Undrawn() as mode:
        module = build()
    loaded = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    passed_over = [reference() for reference in mode.passed_over]
    if all(parameter is not None and id(parameter) in loaded for parameter in passed_over):
        return module
    return build()


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the state dict of what `build` returns, without allocating memory."""
    with weightless():
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


class _Undrawn(TorchFunctionMode):
    """Leaves parameters as they are that would be drawn, and notes which."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_over: list[weakref.ref[nn.Parameter]] = []

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Returns the parameter that is to be drawn; calls every other function."""
        named = named or {}
        if function in DRAWS:
            tensor = given[0] if given else named.get("tensor")
            if isinstance(tensor, nn.Parameter):
                self.passed_over.append(weakref.ref(tensor))
                return tensor
        return function(*given, **named)
