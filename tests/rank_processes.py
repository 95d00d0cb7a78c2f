"""Runs a function on several ranks. A module of its own, not part of conftest.py: other processes import it
by name, and there are several conftests.

Ranks are forked from one server that has imported torch, deepspeed and the trainer already and has started
neither threads nor process groups: importing takes some seconds of each rank otherwise.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTED_ONCE = (
    "deepspeed",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "flava_ds.build",
    "flava_ds.checkpoints.checkpoint",
    "flava_ds.demo.dataset",
    "flava_ds.evaluation.runner",
    "flava_ds.families.flava.plans",
    "flava_ds.families.flava.task",
    "flava_ds.recipes",
    "pytest",
    "torch._dynamo",
    "torch.profiler._cupti_monitor",
    "torch.utils.tensorboard",
    "torchvision.io",
)
"""What most ranks import sooner or later, DeepSpeed's first engine and the tests' own modules included; each
would take seconds for it.
"""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
"""Some of it is read when torch and deepspeed are imported, so the server has it, too."""


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Runs `function(*arguments)` in `world_size` fresh processes with a launcher's environment; returns each
    rank's result in order.
    """
    import torch.multiprocessing as processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        start_server()
        processes.start_processes(
            _rank_main,
            args=(function, world_size, port, folder, arguments),
            nprocs=world_size,
            start_method="forkserver",
        )
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def start_server() -> None:
    """Starts the server that ranks are forked from, unless it runs."""
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(list(IMPORTED_ONCE))
    kept = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def keep_shared_memory() -> None:
    """Leaves what the server has imported out of garbage collection: to collect is to write into every
    object, and so to copy the memory shared with the server. DeepSpeed collects when it makes an engine.
    """
    gc.freeze()


def _rank_main(
    rank: int, function: Callable[..., Any], world_size: int, port: int, folder: str, arguments: tuple
) -> None:
    """One rank of `run_ranks`."""
    import torch

    keep_shared_memory()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **ENVIRONMENT,
    )
    torch.set_num_threads(1)
    result = function(*arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    # a gloo thread that wants the interpreter while it shuts down would abort the process now and then
    os._exit(0)
