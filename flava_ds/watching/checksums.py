"""Compares checksums of all tensors that must be equal on all ranks.

Compares full copies: all parameters and buffers in ZeRO 0 to 2; in ZeRO-3, buffers and the parameters that it
does not shard; frozen networks and training states in every stage. Sharded data (fp32 masters and moments,
and most weights in ZeRO-3) has no second copy to compare with. ZeRO 1 and 2 refresh all copies from their
owners' shards at every update, so a corrupted copy is visible only until the next update.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.errors import DesyncError, first_of
from flava_ds.ranks.distributed import World, gather_objects
from flava_ds.training.engine import Engine
from flava_ds.training.trainer import is_due
from flava_ds.training.watcher import Update, Watcher

CHUNK = 2**22
"""Elements whose bits are added at a time, which bounds the memory used."""


class ChecksumWatch(Watcher):
    """Compares the ranks' copies at the start and every `every` steps."""

    def __init__(
        self, engine: Engine, every: int, paused: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Never compares if `every` is 0. Comparisons run inside `paused`."""
        self.engine, self.every, self._paused = engine, every, paused
        self._equal_until, self._started = 0, False

    def on_start(self, first_step: int) -> None:
        self._equal_until = first_step
        if self.every and not self._started:
            self._compare(None)
        self._started = True

    def after_update(self, update: Update) -> None:
        if is_due(update.step + 1, self.every):
            self._compare(update.step)
            self._equal_until = update.step + 1

    def _compare(self, step: int | None) -> None:
        with self._paused():
            check_equal(self.engine.world, replicated(self.engine), step, self._equal_until)


def replicated(engine: Engine) -> dict[str, Tensor]:
    """Returns the tensors that must be equal on all ranks, by name."""
    task = engine.module
    whole = engine.stage < 3
    found: dict[str, Tensor] = {}
    found |= {
        name: own for name, own in task.named_parameters() if whole or getattr(own, "ds_persist", False)
    }
    found |= dict(task.named_buffers())
    for name, module in task.frozen.items():
        found |= {
            f"{name}.{key}": tensor for key, tensor in (*module.named_parameters(), *module.named_buffers())
        }
    for name, state in task.states.items():
        found |= {f"{name}.{key}": tensor for key, tensor in state.copies().items()}
    return found


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """Adds a tensor's bits as integers: an int64 scalar on its device. Changing one element changes it."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().reshape(-1).view(integers)
    return torch.stack(
        [part.sum(dtype=torch.int64) for part in bits.split(CHUNK)] or [bits.sum(dtype=torch.int64)]
    ).sum()


def check_equal(world: World, tensors: dict[str, Tensor], step: int | None, equal_until: int) -> None:
    """Compares the ranks' copies: one small collective and one wait for the device.

    All ranks must call it together. `step` is the step just made, None at the start; `equal_until` is the
    number of updates made at the last comparison.

    Raises: DesyncError on all ranks, naming the ranks that differ and the first tensor that does.
    """
    if world.size == 1 or not tensors:
        return
    sums = torch.stack([checksum(tensor) for tensor in tensors.values()])
    bounds = torch.cat([sums, ~sums])  # max(~x) is ~min(x): one all_reduce finds both
    dist.all_reduce(bounds, dist.ReduceOp.MAX)
    if torch.equal(bounds[: len(tensors)], ~bounds[len(tensors) :]):
        return
    everyone = gather_objects(world, (socket.gethostname(), sums.tolist()))
    told = describe(
        list(tensors), [row for _, row in everyone], [host for host, _ in everyone], step, equal_until
    )
    raise DesyncError(told).everywhere()


def describe(
    names: list[str], table: list[list[int]], hosts: list[str], step: int | None, equal_until: int
) -> str:
    """Returns the error message for checksums by rank and tensor, some of which differ."""
    different = [column for column in range(len(names)) if len({row[column] for row in table}) > 1]
    values = [row[different[0]] for row in table]
    (usual, count), *others = Counter(values).most_common()
    tied = bool(others) and others[0][1] == count
    odd = [rank for rank, value in enumerate(values) if tied or value != usual]
    named = first_of([f"rank {rank} on {hosts[rank]}" for rank in odd], 8)
    against = (
        "differ from each other"
        if tied
        else f"differ{'s' * (len(odd) == 1)} from the other {len(values) - len(odd)} ranks"
    )
    found = f"{named} {against} in '{names[different[0]]}' ({len(different)} of {len(names)} tensors differ)"
    if step is None:
        return (
            f"at the start {found}; give all machines the same files (codebook_weights, initial_weights, "
            "checkpoints)"
        )
    if equal_until:
        way_back = f"go on from a checkpoint of step {equal_until} or before, when all were equal"
    else:
        way_back = "start again, because they were equal only then"
    return (
        f"step {step}: {found}, although all ranks make the same updates; this points to a faulty device or "
        f"memory: test these machines or leave them out, and {way_back} (logging.checksum_every_steps)"
    )
