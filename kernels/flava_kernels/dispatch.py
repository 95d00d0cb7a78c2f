"""Chooses each operator's implementation.

FLAVA_KERNELS=torch   the references, everywhere
FLAVA_KERNELS=triton  the kernels; unsupported inputs are errors. CPU tensors run in Triton's interpreter,
                      with TRITON_INTERPRET=1
FLAVA_KERNELS=auto    (default) the kernels for GPU tensors that they support, else the references; logs the
                      first time that a GPU tensor is not supported
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MODES = ("auto", "torch", "triton")
GPU_TYPES = ("cuda",)
"""torch reports AMD devices as "cuda" too."""

PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


class UnsupportedInputError(RuntimeError):
    """FLAVA_KERNELS=triton, but an operator's kernels do not support this input."""


def mode() -> str:
    """Returns the value of FLAVA_KERNELS. Raises ValueError if it is none of MODES."""
    wanted = os.environ.get("FLAVA_KERNELS", "auto")
    if wanted not in MODES:
        raise ValueError(f"FLAVA_KERNELS is {wanted!r}; it must be one of {', '.join(MODES)}")
    return wanted


def use_triton(op: str, example: Tensor, supports: Callable[..., str | None], *arguments: Any) -> bool:
    """Decides for one call.

    `example` is any tensor of the call, for its device; `supports`, called with `arguments` only if there are
    kernels for that device at all, returns None, or why the kernels do not support this input. Raises
    UnsupportedInputError if FLAVA_KERNELS=triton cannot be satisfied.
    """
    wanted, device_type = mode(), example.device.type
    if wanted == "torch" or (wanted == "auto" and device_type not in GPU_TYPES):
        return False
    reason = unavailable(device_type) or supports(*arguments)
    if reason is None:
        return True
    if wanted == "triton":
        raise UnsupportedInputError(f"FLAVA_KERNELS=triton, but {op} cannot run its kernels: {reason}")
    _warn_once(op, reason)
    return False


def implementation(device_type: str, unsupported: str | None) -> str:
    """Returns "triton" or "torch", given FLAVA_KERNELS and the result of an operator's `supports`."""
    if mode() == "torch" or unavailable(device_type) or unsupported:
        return "torch"
    return "triton" if mode() == "triton" or device_type in GPU_TYPES else "torch"


def needs_custom_operator(example: Tensor) -> bool:
    """Returns True if a call must go through torch.library.

    That is under torch.compile, for tensors without data, for subclasses, and, on a GPU, while a dispatch
    mode watches: it could not see into a kernel. Elsewhere an operator runs as an autograd function, because
    a custom operator costs several times as much Python (benchmarks/host_time.py).
    """
    return (
        torch.compiler.is_compiling()
        or type(example) not in PLAIN_TENSORS
        or (not example.is_cpu and (example.is_meta or torch._C._len_torch_dispatch_stack() > 0))
    )


def runs_on_the_cpu(example: Tensor) -> bool:
    """Returns True if a call runs references on a CPU, which may then take what is fastest there."""
    return example.is_cpu and mode() != "triton"


def unavailable(device_type: str) -> str | None:
    """Returns None, or why Triton cannot run on a device type at all."""
    if not triton_installed():
        return "triton is not installed"
    if device_type in GPU_TYPES:
        return None
    if device_type == "cpu":
        return None if interpreting() else "the tensors are on the CPU and TRITON_INTERPRET=1 is not set"
    return f"there are no kernels for {device_type} tensors"


def interpreting() -> bool:
    """Returns True if Triton runs its interpreter.

    It reads the variable when a kernel is defined, so set it before the first import.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_installed() -> bool:
    """Looks for the package without importing it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _warn_once(op: str, reason: str) -> None:
    logger.warning("%s uses its torch reference on the GPU: %s", op, reason)
