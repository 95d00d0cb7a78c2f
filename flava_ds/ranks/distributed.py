"""Processes and ranks: joining the process group, agreeing on counts and errors, logging from rank 0."""

from __future__ import annotations

import datetime
import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from flava_ds.allocator import keep_freed_memory
from flava_ds.errors import UserError
from flava_ds.plain_text import PlainFormatter
from flava_ds.processes import within
from flava_ds.ranks import launcher_variables

log = logging.getLogger("flava_ds")

Value = TypeVar("Value")

ENDED = "flava_ds/first_end"
"""Key in the store for the rank that ended first, and its exit status."""
ASKED = "flava_ds/roll_call"
"""Key in the store that wakes the thread of every rank which answers roll calls (roll_call.py)."""
STORE_S = 5.0
"""Seconds to wait for the process group's store; rank 0 serves it, so it answers unless rank 0 hangs."""
DEVICE_LATER_S = 60
"""Extra timeout of nccl over gloo. nccl aborts the process, whereas a failed collective on the host can still
name the missing rank, so gloo should time out first.
"""
GRACE_S = 1.0
"""How long rank 0 outlives its last line: it serves the store in which ranks ask who reports the error."""


@dataclass(frozen=True)
class World:
    """This process among all ranks.

    `host_group` exchanges small integers between hosts (gloo), so that agreeing on counts never waits for a
    device.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    host_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes logs."""
        return self.rank == 0


class RankFailedError(RuntimeError):
    """Another rank has ended with an error, and reports it itself."""


class DisagreementError(RuntimeError):
    """Ranks disagree on step, source or kind. Continuing would mix their gradients silently."""


def start(timeout_s: int) -> World:
    """Joins the process group: nccl on CUDA, gloo on CPU. Without a launcher, starts a world of one rank.

    Raises: UserError when the launcher set only some of its variables, or the ranks do not meet.
    """
    launcher_variables.complete()
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
        with _meeting(rank):
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                # alone, without a port, which another process may take between its choice and its use
                store=dist.HashStore() if size == 1 else None,
                timeout=later,
                rank=rank,
                world_size=size,
                device_id=device if cuda else None,
            )
    host_group = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD
    assert isinstance(host_group, dist.ProcessGroup)
    _speak_on_main(rank)
    return World(rank=rank, local_rank=local_rank, size=size, device=device, host_group=host_group)


@contextmanager
def _meeting(rank: int) -> Iterator[None]:
    """Rephrases the errors of ranks that do not meet at rank 0's address. Raises: UserError."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdecimal():
        raise UserError(
            f"MASTER_PORT is '{port}'; set it to the number of a port that is free on rank 0's host"
        )
    try:
        yield
    except RuntimeError as error:  # DistError, and what gloo and NCCL raise by themselves
        said = str(error).partition("\n")[0]
        mend = (
            "see whether all ranks are started and reach that host, and whether address and port are rank 0's"
        )
        if "EADDRINUSE" in said:
            mend = "another process has that port, perhaps another run: set another one (MASTER_PORT)"
        elif "GLOO_SOCKET_IFNAME" in os.environ and "Unable to find address" in said:
            mend = "GLOO_SOCKET_IFNAME has to name a network of this machine"
        raise UserError(f"rank {rank} cannot meet the others at {address}:{port} ({said}); {mend}") from error


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Waits for all ranks, on the host."""
    dist.barrier(group=world.host_group)


_FAILED = 2**40
"""The note of a rank that cannot continue; larger than any other note."""


def all_reduce_counts(
    world: World, counts: list[int], step: int, source: int, kind: int, note: int, layered: int
) -> tuple[list[int], list[int]]:
    """Sums `counts` over ranks and returns them with every rank's `note`, a message to the other ranks.

    Costs one small exchange on the host per step.

    Raises: RankFailedError when a rank reports a failure instead; DisagreementError that names the first rank
    on another step, source or kind, or with another number of blocks that run their layers (`layered`). With
    ZeRO, such ranks would silently mix gradients of different parameters.
    """
    table = gather_numbers(world, [step, source, kind, note, layered, *counts])
    failed = [rank for rank, row in enumerate(table) if row[3] == _FAILED]
    if failed:
        raise RankFailedError(f"step {step}: rank {failed[0]} has failed")
    layered_first = table[0][4]
    for rank, (other_step, other_source, other_kind, _, other_layered, *_) in enumerate(table):
        if [other_step, other_source, other_kind] != table[0][:3]:
            raise DisagreementError(
                f"rank {rank} is on step {other_step}, source {other_source}, kind {other_kind}, but rank "
                f"0 on step, source, kind {table[0][:3]}; every rank must draw the same source at every step "
                "(same recipe, seed and checkpoint everywhere)"
            )
        if other_layered != layered_first:
            raise DisagreementError(
                f"rank {rank} runs {other_layered} transformer blocks layer by layer, but rank 0 "
                f"{layered_first}, so their gradients would be reduced in different orders; register hooks "
                "on layers, replace them and set FLAVA_KERNELS on all ranks alike"
            )
    sums = [sum(column) for column in zip(*(row[5:] for row in table), strict=True)]
    return sums, [row[3] for row in table]


def tell_failure(world: World, counts: int) -> None:
    """Joins the other ranks' all_reduce_counts of `counts` numbers to report that this rank has failed."""
    gather_numbers(world, [0, 0, 0, _FAILED, 0, *[0] * counts])


def gather_numbers(world: World, numbers: list[int]) -> list[list[int]]:
    """Returns every rank's `numbers`, in rank order. All ranks must pass the same number of them.

    gloo's all_gather passes rows around a ring, in n - 1 messages one after the other. Here every message
    carries all rows that its sender has, so that ceil(log2(n)) are enough, with as many bytes.

    Source: Bruck et al., Efficient Algorithms for All-to-All Communications in Multiport Message-Passing
    Systems (IEEE TPDS 8, 1997), concatenation with one port.
    """
    rank, size, group = world.rank, world.size, world.host_group
    table = torch.empty(size, len(numbers), dtype=torch.int64)  # row i is of the i-th rank after this one
    table[0] = torch.tensor(numbers)
    distances = [2**power for power in range((size - 1).bit_length())]
    arriving = [dist.irecv(table[d : 2 * d], (rank + d) % size, group) for d in distances]
    leaving = []
    for distance, arrival in zip(distances, arriving, strict=True):
        leaving.append(dist.isend(table[: min(distance, size - distance)], (rank - distance) % size, group))
        _wait(arrival)
    for message in leaving:
        _wait(message)
    return table.roll(rank, 0).tolist()


def _wait(message: dist.Work | None) -> None:
    """Waits for a message, which is None only on ranks outside of its group."""
    assert message is not None
    message.wait()


def gather_objects(world: World, value: object) -> list:
    """Returns every rank's `value`, in rank order. Uses pickle, so only for processes of the same job."""
    values: list = [None] * world.size
    dist.all_gather_object(values, value, group=world.host_group)
    return values


def from_main(world: World, value: Value) -> Value:
    """Returns rank 0's `value` on all ranks, whatever the others pass. Uses pickle, as gather_objects does,
    but the memory that it takes does not grow with the number of ranks.
    """
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, group=world.host_group)
    found: Value = values[0]
    return found


def from_this_machine(world: World, value: Value | None) -> Value | None:
    """Returns this rank's `value` or, where it passes None, that of the first rank of its machine that does
    not. Uses pickle, as gather_objects does.
    """
    host = socket.gethostname()
    values = [value, *(found for other, found in gather_objects(world, (host, value)) if other == host)]
    return next((found for found in values if found is not None), None)


def raise_together(world: World, error: Exception | None) -> None:
    """Raises on all ranks if any rank passes an error, so that no rank is left waiting in a collective.

    Raises: this rank's own error, or else the first of the other ranks; but if one is no UserError, that on
    all, so that either all ranks can go on or none.
    """
    errors = [found for found in gather_objects(world, error) if found is not None]
    grave = next((found for found in errors if not isinstance(found, UserError)), None)
    first = grave or error or next(iter(errors), None)
    if first is not None:
        vars(first)["on_all_ranks"] = True  # every rank raises it, so one of them reports it for all
        raise first


@contextmanager
def together(world: World) -> Iterator[None]:
    """Raises a UserError of one rank on all ranks, so that none is left waiting in a collective."""
    error = None
    try:
        yield
    except UserError as problem:
        if problem.on_all_ranks:  # each has learned of it in an exchange inside
            raise
        error = problem
    raise_together(world, error)


def of_exchange(error: Exception) -> bool:
    """Returns whether an exception comes from an exchange of ranks: the group takes no further one then."""
    return any("/torch/distributed/" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


_first_end: list[str] = []
"""The value of ENDED, once this rank knows it."""


def learn_first_end(store: dist.Store) -> None:
    """Remembers which rank has ended first, if one has: rank 0 serves the store, and may be the one."""
    if store.check([ENDED]):
        _first_end[:] = [store.get(ENDED).decode()]


def has_ended() -> bool:
    """Returns whether a rank is known to have ended with an error, which it reports itself."""
    return bool(_first_end)


def have_met() -> bool:
    """Returns whether this rank has joined the process group."""
    return dist.is_initialized()


def agree_on_end(status: int) -> tuple[bool, int]:
    """Returns whether this rank is the first to end with an error, and the first one's exit status.

    So only one rank reports, and the job ends with its status, whichever process the launcher notices first.
    Before the ranks have met, or when rank 0 is gone or hangs along with the store, nobody can decide; then
    the first rank of every machine reports.
    """
    # rank 1 too: it may share rank 0's machine, and without an answer rank 0 is likely the one that fails
    first_here = os.environ.get("LOCAL_RANK", "0") == "0" or os.environ.get("RANK") == "1"
    if not have_met():
        return os.environ.get("LOCAL_RANK", "0") == "0", status
    try:
        if not _first_end:
            store = dist.distributed_c10d._get_default_store()
            mine = f"{dist.get_rank()}:{status}"
            # sets the key only if it is still empty, and returns its value: the first rank to end wins
            _first_end[:] = [within(STORE_S, lambda: store.compare_set(ENDED, "", mine)).decode()]
            within(STORE_S, lambda: store.set(ASKED, "1"))  # others learn of it before the store goes
    except (RuntimeError, TimeoutError):  # RuntimeError includes dist.DistNetworkError
        if not _first_end:
            return first_here, status
    rank, first = _first_end[0].split(":")
    return int(rank) == dist.get_rank(), int(first)


def keep_store() -> None:
    """Makes rank 0 wait until the other ranks have asked its store who reports the error."""
    if os.environ.get("RANK", "0") == "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        time.sleep(GRACE_S)


def tell_end(status: int) -> None:
    """Tells the other ranks that this one ends, and says why itself; else they would say that it ended
    without a word.
    """
    agree_on_end(status)
    keep_store()


def _share_cores(local_ranks: int) -> None:
    """Divides this host's cores among its ranks: if two ranks use all threads, both are many times slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def _speak_on_main(rank: int) -> None:
    """Logs at INFO on rank 0 and only warnings on the others, each line with its rank."""
    if not log.handlers:
        handler = logging.StreamHandler()
        form = PlainFormatter(f"[%(asctime)s rank {rank}] %(message)s", datefmt="%H:%M:%S")
        handler.setFormatter(form)
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


@contextmanager
def spoken_by(speaks: bool) -> Iterator[None]:
    """Leaves out this rank's warnings, unless it is the one that speaks for all that do the same work."""
    level = log.level
    if not speaks:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
