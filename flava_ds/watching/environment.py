"""Records a run's environment in its folder: configuration, versions, machines, source, kernels."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flava_kernels
import torch
from flava_kernels import overview
from flava_kernels.bench.machine import device_name, version_of

from flava_ds import config as configuration
from flava_ds.config import Config
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import DesyncError
from flava_ds.plain_text import public
from flava_ds.ranks.distributed import World, gather_objects, log
from flava_ds.storage.atomic import write_json

DISTRIBUTIONS = ("flava_ds", "torch", "torchvision", "deepspeed", "triton", "transformers", "numpy")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "FLAVA_KERNELS",
    "MASTER_ADDR",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
)
PREFIXES = ("NCCL_", "GLOO_", "SLURM_JOB_", "TORCH_NCCL_")
"""Environment variables that affect a run: names and prefixes."""


def describe_start(config: Config, world: World, gemm_rate: float) -> dict[str, Any]:
    """Returns the run's configuration, software, hardware and source; compares them over ranks.

    Collective: all ranks must call it together. `gemm_rate` is the FLOP/s of all ranks' devices together on
    plain matrix products.

    Raises: DesyncError on all ranks if one has another configuration.
    """
    plain, git = public(configuration.to_dict(config)), git_state()
    versions = {
        "python": platform.python_version(),
        **{name: version_of(name) for name in DISTRIBUTIONS},
        "cuda": torch.version.cuda or "none",
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    software = {**versions, "commit": git["commit"] if git else "unknown"}
    everyone = gather_objects(world, (socket.gethostname(), device_name(world.device), digest, software))
    hosts = [host for host, *_ in everyone]
    if len({digest for _, _, digest, _ in everyone}) > 1:
        refuse_configurations(gather_objects(world, flat(plain)), hosts)
    if world.is_main:
        warn_of_software([software for *_, software in everyone], hosts)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": public(sys.argv),
        "versions": versions,
        "config_sha256": digest,
        "hardware": {
            "device": device_name(world.device),
            "ranks": world.size,
            **_device_memory(world.device),
            "host_memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
            "cpu_cores": len(os.sched_getaffinity(0)),
            "threads_per_rank": torch.get_num_threads(),
            "gemm_flops_per_second": gemm_rate,
        },
        "hosts": _hosts([(host, device) for host, device, *_ in everyone]),
        "git": git,
        "kernels": {
            name: f"{implementation}: {why}" for name, implementation, why in overview.rows(flava_kernels.OPS)
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in VARIABLES or name.startswith(PREFIXES)
        },
        "config": plain,
    }


def refuse_configurations(configs: list[dict[str, Any]], hosts: list[str]) -> None:
    """Raises DesyncError naming the first rank whose configuration differs from rank 0's, and the field."""
    for config, (rank, host) in zip(configs, enumerate(hosts), strict=True):
        if different := [
            name for name in sorted({*configs[0], *config}) if configs[0].get(name) != config.get(name)
        ]:
            name = different[0]
            raise DesyncError(
                f"rank {rank} on {host} has {name} {config.get(name)!r} and rank 0 has "
                f"{configs[0].get(name)!r}; give all machines the same command, and the same code if the "
                "recipe comes from a file"
            ).everywhere()


def warn_of_software(software: list[dict[str, str]], hosts: list[str]) -> None:
    """Warns of the first rank whose versions or commit differ from rank 0's."""
    for found, (rank, host) in zip(software, enumerate(hosts), strict=True):
        if different := [
            f"{name} {found[name]} instead of {version}"
            for name, version in software[0].items()
            if found[name] != version
        ]:
            log.warning(
                "rank %d on %s has different software from rank 0: %s; results may differ",
                rank,
                host,
                ", ".join(different),
            )
            return


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """Returns the leaves of nested JSON types by dotted name."""
    if not isinstance(node, dict | list) or not node:
        return {name: node}
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    return {
        key: leaf
        for part, value in entries
        for key, leaf in flat(value, f"{name}.{part}" if name else str(part)).items()
    }


def write_start(path: Path, description: dict[str, Any], step: int) -> None:
    """Appends a start at `step` to the list in environment.json. Call it on one rank."""
    try:
        starts = loads(read_small(path)) if path.is_file() else []
    # after a crash of the machine it may be empty, which must not keep a run from resuming
    except ValueError as error:
        log.warning("%s cannot be read (%s); starting a new one", path, error)
        starts = []
    write_json(path, [*starts, {"step": step, **description}], indent=1)


def git_state() -> dict[str, Any] | None:
    """Returns the source's commit and whether it was modified; None outside its own repository, such as for
    an installed package, whose environment may lie in a repository of the user's.
    """
    folder = Path(__file__).resolve().parents[2]
    try:
        top, commit, changed = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10)
            for words in _GIT_QUESTIONS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode or Path(top.stdout.rstrip("\n")).resolve() != folder:
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changed.stdout.strip())}


_GIT_QUESTIONS = (
    ("rev-parse", "--show-toplevel"),
    ("rev-parse", "HEAD"),
    ("status", "--porcelain", "--untracked-files=no"),
)


def _hosts(ranks: list[tuple[str, str]]) -> dict[str, dict[str, list]]:
    """Returns each host's ranks and devices, from (host, device) of every rank."""
    hosts: dict[str, dict[str, list]] = {}
    for rank, (host, device) in enumerate(ranks):
        entry = hosts.setdefault(host, {"ranks": [], "devices": []})
        entry["ranks"].append(rank)
        if device not in entry["devices"]:
            entry["devices"].append(device)
    return hosts


def _device_memory(device: torch.device) -> dict[str, float]:
    """Returns the memory of a GPU; a CPU's is the host's."""
    return (
        {"device_memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30}
        if device.type == "cuda"
        else {}
    )
