"""Configurations of kernels: one per architecture, from a table, never autotuned.

Autotuning would make results depend on timings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Architectures in the configuration tables: A100, H100 and H200, B200, MI300."""

INTERPRETED = "sm_90"
"""The architecture whose configurations Triton's interpreter uses."""


@dataclass(frozen=True)
class Launch:
    """One specialisation of a kernel as an operator launches it, for ahead-of-time compilation.

    `name` is unique per architecture and starts with the operator's name: "layer_norm.forward.bf16.768".
    `kernel` is the @triton.jit function. `signature` gives the type of every argument that is not a constexpr
    ("*bf16", "*fp32", "*i32", "i32", "i64", "fp32"), `constexprs` the values of the others. `arch` is one of
    ARCHITECTURES. Pointers and integers are assumed divisible by 16, as the JIT infers, except integers that
    the kernel does not specialise on and the arguments in `unaligned`.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    arch: str
    unaligned: tuple[str, ...] = ()
    from_memory: float = 1.0
    """Share of the inner loop's bytes that come from the GPU's own memory, for roofline.py's estimate.

    It assumes that an operator moves each byte once: the rest was read before by some program and is in the
    L2 cache.
    """


def on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function that launches kernels with its first tensor's GPU as the current one.

    Triton launches on the current device, whatever the tensors' is.
    """

    @functools.wraps(function)
    def wrapper(first: Tensor, *arguments: Any, **keywords: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *arguments, **keywords)

    return wrapper


def ceil_div(value: int, by: int) -> int:
    """Returns how many blocks of `by` hold `value`. Triton's own works inside of kernels too, and takes a
    hundred times as long; a step of pairs asks 600 times.
    """
    return -(-value // by)


def next_power_of_2(value: int) -> int:
    """Returns the smallest power of two that is at least `value`, from 1 on."""
    return 1 << (value - 1).bit_length()


def architecture(device: torch.device) -> str:
    """Returns the entry of ARCHITECTURES whose configurations a device uses."""
    if device.type != "cuda":
        return INTERPRETED
    return _architecture_of_gpu(torch.cuda.current_device() if device.index is None else device.index)


def gpu_name(index: int) -> str:
    """Returns a GPU's architecture in the compiler's notation: "sm_90", "gfx942"."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def nearest(name: str) -> str:
    """Returns the entry of ARCHITECTURES for a GPU's `gpu_name`.

    AMD GPUs all use gfx942. NVIDIA GPUs use their own generation's entry if there is one, else sm_80. Compute
    capability 12 is among the latter: it has the older matrix instructions.
    """
    if name.startswith("gfx"):
        return "gfx942"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(int(name.removeprefix("sm_")) // 10, "sm_80")


@functools.cache
def _architecture_of_gpu(index: int) -> str:
    return nearest(gpu_name(index))
