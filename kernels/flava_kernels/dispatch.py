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

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MODES = ("auto", "torch", "triton")
GPU_TYPES = ("cuda",)
"""torch reports AMD devices as "cuda" too."""


class UnsupportedInputError(RuntimeError):
    """FLAVA_KERNELS=triton, but an operator's kernels do not support this input."""


def mode() -> str:
    """Returns the value of FLAVA_KERNELS. Raises ValueError if it is none of MODES."""
    wanted = os.environ.get("FLAVA_KERNELS", "auto")
    if wanted not in MODES:
        raise ValueError(f"FLAVA_KERNELS is {wanted!r}; it must be one of {', '.join(MODES)}")
    return wanted


def use_triton(op: str, example: Tensor, unsupported: str | None) -> bool:
    """Decides for one call.

    `example` is any tensor of the call, for its device; `unsupported` is the result of the operator's
    `supports`: None, or why the kernels do not support this input. Raises UnsupportedInputError if
    FLAVA_KERNELS=triton cannot be satisfied.
    """
    if implementation(example.device.type, unsupported) == "triton":
        return True
    reason = unavailable(example.device.type) or unsupported
    if mode() == "triton":
        raise UnsupportedInputError(f"FLAVA_KERNELS=triton, but {op} cannot run its kernels: {reason}")
    if mode() == "auto" and example.device.type in GPU_TYPES:
        _warn_once(op, reason)
    return False


def implementation(device_type: str, unsupported: str | None) -> str:
    """Returns "triton" or "torch", given FLAVA_KERNELS and the result of an operator's `supports`."""
    if mode() == "torch" or unavailable(device_type) or unsupported:
        return "torch"
    return "triton" if mode() == "triton" or device_type in GPU_TYPES else "torch"


def needs_custom_operator(example: Tensor) -> bool:
    """Returns True if a call must go through torch.library: on a GPU, with kernels, or under torch.compile.

    A custom operator costs 0.1 to 0.4 ms of Python, backward pass included. On a CPU that is several per cent
    of a training step, so an operator may call its reference directly there.
    """
    return torch.compiler.is_compiling() or example.device.type != "cpu" or mode() == "triton"


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
