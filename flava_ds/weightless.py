"""Modules without weights, or before they get those of a file: no initial ones are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def weightless() -> Iterator[None]:
    """Makes what is built within it on the meta device: names and shapes, which need no memory."""
    with torch.device("meta"), Undrawn():
        yield


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the state dict of what `build` returns, without allocating memory."""
    with weightless():
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


class Undrawn(TorchFunctionMode):
    """Leaves parameters as they are where torch.nn.init would fill them; all have to be loaded then.

    Drawing flava_base's takes some seconds. On the meta device it changes nothing, but the first draw there
    loads torch's compiler, in a second or two. Truncated normals and Xavier's are drawn nevertheless:
    torch lets no mode stand in for them.
    """

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Returns the parameter that is to be initialised; calls every other function."""
        named = named or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            tensor = given[0] if given else named["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return function(*given, **named)
