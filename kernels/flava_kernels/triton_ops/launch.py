"""What the kernels of an operator are compiled as: one configuration per architecture, chosen from a table
and never tuned at run time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""What the configuration tables are written for: A100, H100 and H200, B200, MI300."""

INTERPRETED = "sm_90"
"""Whose configurations Triton's interpreter uses."""


@dataclass(frozen=True)
class Launch:
    """One specialisation of a kernel as the operator launches it, for compiling it ahead of time.

    `name` is unique among the launches of one architecture and starts with the operator's name:
    "layer_norm.forward.bf16.768". `kernel` is the @triton.jit function. `signature` gives the type of every
    argument that is not a constexpr ("*bf16", "*fp32", "*i32", "i32", "i64", "fp32"), `constexprs` the value
    of every other one. `arch` is one of ARCHITECTURES. Pointers and integers count as divisible by 16, as the
    JIT finds them, but for integers that the kernel does not specialise on and for the arguments named in
    `unaligned`.
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
    """Part of the bytes asked for in the inner loop that come from the GPU's own memory when an operator
    moves each of its bytes once.

    The rest was read before by this program or another, and an L2 cache has it. For the static estimate of
    roofline.py.
    """


def architecture(device: torch.device) -> str:
    """Returns the entry of ARCHITECTURES whose configurations a device uses."""
    if device.type != "cuda":
        return INTERPRETED
    return _architecture_of_gpu(torch.cuda.current_device() if device.index is None else device.index)


def gpu_name(index: int) -> str:
    """Returns a GPU's architecture in the compiler's words: "sm_90", "gfx942"."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def nearest(name: str) -> str:
    """Returns the entry of ARCHITECTURES for a GPU by its `gpu_name`.

    AMD's GPUs all use gfx942. NVIDIA's use their own generation's entry where there is one; all others, with
    those of compute capability 12 among them, which have the instructions of older cards for matrices, use
    sm_80.
    """
    if name.startswith("gfx"):
        return "gfx942"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(int(name.removeprefix("sm_")) // 10, "sm_80")


@functools.cache
def _architecture_of_gpu(index: int) -> str:
    return nearest(gpu_name(index))
