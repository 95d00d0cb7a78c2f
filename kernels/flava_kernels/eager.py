"""Shared by operators as autograd functions, which is how they run unless something compiles or watches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a gradient with a graph of its own (create_graph=True) an error.

    torch's decorator of this name lets it pass, and refuses a second backward pass only if that comes through
    here. torch.autograd.grad for chosen tensors goes around, and then what was saved in the forward pass
    would silently count as constants.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{backward.__module__} is differentiable once, so create_graph=True cannot go through it; "
                "an operator's formula in plain torch can, flava_kernels.OPS[name].definition"
            )
        return backward(ctx, *grads)

    return wrapper


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets an implementation run in the dtypes that it is given, also inside torch.autocast."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():  # which costs a fifth of what the context does
            return function(*arguments)
        with torch._C._DisableAutocast():
            return function(*arguments)

    return wrapper
