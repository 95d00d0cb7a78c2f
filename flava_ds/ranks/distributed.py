"""Processes and ranks: start, agree on counts, wait, speak once."""

from __future__ import annotations

import datetime
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from flava_ds.errors import UserError
from flava_ds.processes import within
from flava_ds.ranks.allocator import keep_freed_memory

log = logging.getLogger("flava_ds")


ENDED = "flava_ds/first_end"
"""The store's key of the rank that ended first, and its status."""
STORE_S = 5.0
"""Seconds within which the store of the process group answers, unless rank 0, which keeps it, hangs."""
DEVICE_LATER_S = 60
"""How much later nccl gives up than gloo: it aborts the process, while a failed collective on the host can
name the rank that is missing.
"""

OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
"""What Open MPI's mpirun calls torch's variables; the address of rank 0 it does not tell."""


@dataclass(frozen=True)
class World:
    """This process among all of them.

    `host_group` carries small integers between hosts (gloo), so that agreeing on counts never waits for a
    device.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    host_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs."""
        return self.rank == 0


class RankFailedError(RuntimeError):
    """Another rank has ended with an error, and says so itself."""


class DisagreementError(RuntimeError):
    """Ranks are not on the same step, source and kind; going on would mix their gradients silently."""


def start(timeout_s: int) -> World:
    """Joins the process group: nccl on CUDA, gloo on CPU; without a launcher this process is a world of its
    own.

    Raises: UserError when the launcher set only part of its variables.
    """
    _complete_environment()
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    timeout = datetime.timedelta(seconds=timeout_s)
    if cuda:
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        keep_freed_memory()
    if not dist.is_initialized():
        later = timeout + datetime.timedelta(seconds=DEVICE_LATER_S if cuda else 0)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=later,
            rank=rank,
            world_size=size,
            device_id=device if cuda else None,
        )
    host_group = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD
    _speak_on_main(rank)
    return World(rank=rank, local_rank=local_rank, size=size, device=device, host_group=host_group)


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Waits for all ranks, on the host."""
    dist.barrier(group=world.host_group)


_FAILED = 2**40
"""The note of a rank that cannot go on; larger than any other."""


def all_reduce_counts(
    world: World, counts: list[int], step: int, source: int, kind: int, note: int
) -> tuple[list[int], list[int]]:
    """Sums `counts` over ranks and returns every rank's `note`, which is what it wants the others to know;
    one small collective on the host per step.

    Raises: RankFailedError when a rank brings its failure instead; DisagreementError naming the first rank
    that is on another step, source or kind. With ZeRO such ranks would exchange gradients of different
    parameters without noticing.
    """
    table = gather_numbers(world, [step, source, kind, note, *counts])
    failed = [rank for rank, row in enumerate(table) if row[3] == _FAILED]
    if failed:
        raise RankFailedError(f"step {step}: rank {failed[0]} has failed")
    for rank, (other_step, other_source, other_kind, *_) in enumerate(table):
        if [other_step, other_source, other_kind] != table[0][:3]:
            raise DisagreementError(
                f"rank {rank} is on step {other_step}, source {other_source}, kind {other_kind}, but rank "
                "0 on step, source, kind "
                f"{table[0][:3]}; every rank must draw the same source at every step (same recipe, seed "
                "and checkpoint everywhere)"
            )
    return [sum(column) for column in zip(*(row[4:] for row in table), strict=True)], [
        row[3] for row in table
    ]


def tell_failure(world: World, counts: int) -> None:
    """Joins the other ranks' all_reduce_counts of `counts` numbers with the news that this rank
    cannot go on."""
    gather_numbers(world, [0, 0, 0, _FAILED, *[0] * counts])


def gather_numbers(world: World, numbers: list[int]) -> list[list[int]]:
    """Returns every rank's `numbers`, in rank order; all ranks bring equally many."""
    mine = torch.tensor(numbers, dtype=torch.int64)
    rows = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(rows, mine, group=world.host_group)
    return torch.stack(rows).tolist()


def gather_objects(world: World, value: object) -> list:
    """Returns every rank's `value`, in rank order. Only among the processes of this job."""
    values: list = [None] * world.size
    dist.all_gather_object(values, value, group=world.host_group)
    return values


def raise_together(world: World, error: Exception | None) -> None:
    """Raises on all ranks when any rank brings an error, so that none is left waiting: its own where it has
    one, else the first other.

    Raises: the error.
    """
    errors = gather_objects(world, error)
    first = error or next((e for e in errors if e is not None), None)
    if first is not None:
        first.on_all_ranks = True
        raise first


@contextmanager
def together(world: World) -> Iterator[None]:
    """Turns a UserError that one rank meets inside into one error of all ranks, so that none is
    left waiting."""
    error = None
    try:
        yield
    except UserError as problem:
        error = problem
    raise_together(world, error)


def agree_on_end(status: int) -> tuple[bool, int]:
    """Tells a rank that ends with an error whether it is the first to do so, and the first one's exit status.

    So one rank speaks, and the job ends with its status, whichever process the launcher looks at first.
    Before the ranks have met, or when rank 0 and the store with it are gone or hang, there is nobody to ask:
    then the first rank of every machine speaks that can.
    """
    first_here = os.environ.get("LOCAL_RANK", "0") == "0" or os.environ.get("RANK") == "1"
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0", status
    try:
        store = dist.distributed_c10d._get_default_store()
        rank, first = (
            within(STORE_S, lambda: store.compare_set(ENDED, "", f"{dist.get_rank()}:{status}"))
            .decode()
            .split(":")
        )
    except (RuntimeError, TimeoutError):  # dist.DistNetworkError among them
        return first_here, status
    return int(rank) == dist.get_rank(), int(first)


def _complete_environment() -> None:
    """Takes over what mpirun has set, or fills in what a launcher would set for one process
    without launcher."""
    if "RANK" not in os.environ and OPEN_MPI["RANK"] in os.environ:
        os.environ.update({name: os.environ[theirs] for name, theirs in OPEN_MPI.items()})
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if name in os.environ]
    if "RANK" not in present and "WORLD_SIZE" not in present:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(
            RANK="0",
            WORLD_SIZE="1",
            LOCAL_RANK="0",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    elif len(present) < len(names):
        missing = ", ".join(name for name in names if name not in present)
        raise UserError(
            f"the launcher set {', '.join(present)} but not {missing}; start with `deepspeed`, "
            "`torchrun` or a script under launchers/"
        )


def _share_cores(local_ranks: int) -> None:
    """Gives each rank of this host its share of the cores: two ranks with all threads each run many times
    slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def _speak_on_main(rank: int) -> None:
    """Lets rank 0 log at INFO and the others only warnings, each line with its rank."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"[%(asctime)s rank {rank}] %(message)s", datefmt="%H:%M:%S"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
