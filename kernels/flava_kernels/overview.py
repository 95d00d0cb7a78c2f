"""Lists the operators' implementations and reasons: `flava_kernels.report()`, `python -m flava_kernels`."""

from __future__ import annotations

import torch

from flava_kernels import dispatch
from flava_kernels.op import Op
from flava_kernels.triton_ops import launch


def rows(ops: dict[str, Op]) -> list[tuple[str, str, str]]:
    """Returns (operator, "triton", "torch" or "error", reason) for bf16 on this machine's GPU or CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [(name, *_choice(op, device)) for name, op in ops.items()]


def table(ops: dict[str, Op]) -> str:
    """Formats the rows below a line with FLAVA_KERNELS, versions and device."""
    lines = [("operator", "implementation", "why"), *rows(ops)]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    text = [f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]}" for line in lines]
    return "\n".join([f"FLAVA_KERNELS={dispatch.mode()}, torch {torch.__version__}, {_device()}", *text])


def _choice(op: Op, device: str) -> tuple[str, str]:
    mode = dispatch.mode()
    if mode == "torch":
        return "torch", "FLAVA_KERNELS=torch"
    reason = dispatch.unavailable(device) or op.supports(**op.cases()[0].inputs(torch.bfloat16, device))
    if reason is not None:
        return ("error" if mode == "triton" else "torch"), reason
    if device == "cpu":
        return (
            ("triton", "in the interpreter")
            if mode == "triton"
            else ("torch", "FLAVA_KERNELS=auto uses the references on a CPU")
        )
    return "triton", _configurations()


def _configurations() -> str:
    name = launch.gpu_name(torch.cuda.current_device())
    nearest = launch.nearest(name)
    return (
        f"configurations of {nearest}"
        if name == nearest
        else f"configurations of {nearest}, the nearest to {name}: neither compiled nor measured for it"
    )


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
