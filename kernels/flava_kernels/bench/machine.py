"""The benchmarked machine: its name, versions, and measured peak rates."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MEASURED_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Size of the tensor whose copy measures the bandwidth."""
MEASURED_EDGE = {"cpu": 1536, "cuda": 8192}
"""Edge of the square matrices whose product measures the matrix rate."""
REPEATS = 7


@dataclass(frozen=True)
class Machine:
    """Names for the table's rows, and measured rates: bytes per second of a copy, FLOP/s of a product."""

    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    copy_bandwidth: float
    gemm_rate: float


def describe(device: torch.device, dtype: torch.dtype) -> Machine:
    """Names and measures the machine."""
    copy, gemm = _copy_bandwidth(device), gemm_rate(device, dtype, MEASURED_EDGE[device.type])
    return Machine(
        device_name(device),
        torch.get_num_threads(),
        torch.__version__,
        version_of("triton"),
        commit(),
        copy,
        gemm,
    )


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version_of(distribution: str) -> str:
    """Returns an installed version, or "none"; torch's includes the build, e.g. +cpu."""
    if distribution == "torch":
        return torch.__version__
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """Returns the checked-out commit, with a plus sign if files were changed; "unknown" if none is.

    FLAVA_COMMIT names it where a copy of the files has no history.
    """
    if given := os.environ.get("FLAVA_COMMIT"):
        return given
    folder = Path(__file__).parents[2]
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "*.py"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed.strip() else "")


def free_bytes(device: torch.device) -> int:
    """Returns the device's free memory, without what torch's allocator caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return next(
            int(line.split()[1]) * 1024
            for line in meminfo.read_text().splitlines()
            if line.startswith("MemAvailable")
        )
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gemm_rate(device: torch.device, dtype: torch.dtype, edge: int) -> float:
    """Returns the best rate of products of square matrices in FLOP/s; `edge` is their size.

    Leaves the global generators as they are: a run may have just restored their states.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    return 2 * edge**3 / _fastest(lambda: torch.mm(a, b), device)


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.zeros(MEASURED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * MEASURED_BYTES[device.type] / _fastest(lambda: target.copy_(source), device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of the fastest of REPEATS calls after a first one."""
    call()
    times = []
    for _ in range(REPEATS):
        start = _now(device)
        call()
        times.append(_now(device) - start)
    return min(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
