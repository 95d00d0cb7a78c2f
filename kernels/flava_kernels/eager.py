"""Shared by operators as autograd functions, which is how they run unless something compiles or watches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a second differentiation an error, as for a custom operator.

    torch's decorator of this name checks whether the incoming gradient requires one itself. That of a plain
    sum does not, and then the tensors saved in the forward pass would silently count as constants.
    """
    refusing = function.once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            grads = tuple(grad if grad is None else grad.detach().requires_grad_() for grad in grads)
        return refusing(ctx, *grads)

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
