"""What the references share that run as autograd functions of their own, without a custom operator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes gradients refuse to be differentiated, as those of a custom operator do.

    torch's decorator of this name asks whether the incoming gradient has a gradient itself. That of a plain
    sum has none, and then what the forward pass kept would count as constants without a word.
    """
    refusing = function.once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            grads = tuple(grad if grad is None else grad.detach().requires_grad_() for grad in grads)
        return refusing(ctx, *grads)

    return wrapper
