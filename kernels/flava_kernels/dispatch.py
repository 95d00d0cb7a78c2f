"""Which implementation an operator uses, and why.

FLAVA_KERNELS=torch   the references, everywhere
FLAVA_KERNELS=triton  the kernels; an input that they do not take is an error. On CPU tensors they run in
                      Triton's interpreter, TRITON_INTERPRET=1
FLAVA_KERNELS=auto    (the default) the kernels on GPU tensors that they take, else the references; the first
                      time that a GPU tensor is refused is logged
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
"""torch calls AMD's devices by this name too."""


class UnsupportedInputError(RuntimeError):
    """FLAVA_KERNELS=triton, and the kernels of an operator do not take this input."""


def mode() -> str:
    """Returns what FLAVA_KERNELS asks for. Raises ValueError when it is none of MODES."""
    wanted = os.environ.get("FLAVA_KERNELS", "auto")
    if wanted not in MODES:
        raise ValueError(f"FLAVA_KERNELS is {wanted!r}; it must be one of {', '.join(MODES)}")
    return wanted


def use_triton(op: str, example: Tensor, unsupported: str | None) -> bool:
    """Decides for one call.

    `example` is any tensor of the call, for its device; `unsupported` is what the operator's `supports`
    returned: None, or why the kernels do not take this input. Raises UnsupportedInputError where
    FLAVA_KERNELS=triton cannot be obeyed.
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
    """Returns which one FLAVA_KERNELS and an operator's `supports` leave for a call: "triton" or "torch"."""
    if mode() == "torch" or unavailable(device_type) or unsupported:
        return "torch"
    return "triton" if mode() == "triton" or device_type in GPU_TYPES else "torch"


def needs_custom_operator(example: Tensor) -> bool:
    """Tells whether a call must go through torch.library: on a GPU, with kernels, or under torch.compile.

    A custom operator costs 0.1 to 0.4 ms of Python with its backward pass. On a CPU that is several per cent
    of a training step, so an operator may run its reference without one there.
    """
    return torch.compiler.is_compiling() or example.device.type != "cpu" or mode() == "triton"


def unavailable(device_type: str) -> str | None:
    """Returns why Triton cannot run on a device type at all, or None."""
    if not triton_installed():
        return "triton is not installed"
    if device_type in GPU_TYPES:
        return None
    if device_type == "cpu":
        return None if interpreting() else "the tensors are on the CPU and TRITON_INTERPRET=1 is not set"
    return f"there are no kernels for {device_type} tensors"


def interpreting() -> bool:
    """Tells whether Triton runs its interpreter; it reads the variable when a kernel is defined, so set it
    before the first import.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_installed() -> bool:
    """Looks for the package without importing it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _warn_once(op: str, reason: str) -> None:
    logger.warning("%s uses its torch reference on the GPU: %s", op, reason)
