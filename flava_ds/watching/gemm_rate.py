"""The machine's own rate of matrix products, against which a run's FLOP rate is given."""

from __future__ import annotations

import time

import torch


def measure_gemm_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """Times square matrix products and returns the best rate in FLOP/s: what this machine can do, against which mfu is given."""
    size = size or (8192 if device.type == "cuda" else 768)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        begun = _now(device)
        a @ b
        best = min(best, _now(device) - begun)
    return 2 * size**3 / best


def _now(device: torch.device) -> float:
    """Seconds, after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
