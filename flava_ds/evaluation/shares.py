"""Divides encoding among ranks that evaluate one model together.

Every rank encodes every W-th batch and receives all results, so all compute the same numbers. Everything else
(e.g. a probe's fit) runs on every rank: that takes as long as running it on one while the others wait, and no
rank waits in a collective for longer than the ranks' speeds differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.errors import UserError
from flava_ds.ranks.distributed import (
    World,
    from_main,
    gather_objects,
    of_exchange,
    raise_together,
    start,
    stop,
    together,
)

Result = TypeVar("Result")
TIMEOUT_S = 3600
"""Longest time that ranks of `flava-ds evaluate` wait for each other, for example while one fits a probe."""


class Share:
    """A process's part of the work on one set; all ranks iterate in the same order. Without a `world`, one
    process does everything.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        self.rank, self.parts = (0, 1) if world is None else (world.rank, world.size)

    @property
    def is_main(self) -> bool:
        """Returns True on the process that writes files."""
        return self.rank == 0

    def mine(self, starts: range) -> list[int]:
        """Returns the first rows of the batches that this rank encodes: every W-th."""
        return list(starts)[self.rank :: self.parts]

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Encodes this rank's batches and returns those of all ranks in order, gathered over the host's
        process group.

        Raises: the error of the first rank that failed.
        """
        if self.world is None:
            return list(mine)
        parts = self.together(lambda: [part.cpu() for part in mine])
        everyone = gather_objects(self.world, parts)
        return [everyone[number % self.parts][number // self.parts] for number in range(len(starts))]

    def add(self, mine: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Runs this rank's work and returns the sums of its tensors over all ranks, in one collective on the
        device.

        Raises: the error of the first rank that failed.
        """
        if self.world is None:
            return mine()
        tensors = self.together(mine)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=None if flat.is_cuda else self.world.host_group)
        sizes = [tensor.numel() for tensor in tensors]
        return [part.view_as(tensor) for part, tensor in zip(flat.split(sizes), tensors, strict=True)]

    def from_main(self, make: Callable[[], Result]) -> Result:
        """Runs `make` on the process that writes files and returns its result on all.

        Raises: its error, on all ranks.
        """
        if self.world is None:
            return _run(make)
        made: Any = self.together(make if self.is_main else lambda: None)
        found: Result = from_main(self.world, made)
        return found

    def together(self, run: Callable[[], Result]) -> Result:
        """Runs this rank's work; raises an error of any rank on all of them, where they next wait for it."""
        if self.world is None:
            return _run(run)
        found: Any = None
        error: Exception | None = None
        try:
            found = _run(run)
        except Exception as problem:  # the other ranks must not wait forever for this one
            if getattr(problem, "on_all_ranks", False) or of_exchange(problem):
                raise
            # RuntimeError pickles; an arbitrary exception may not
            told = RuntimeError(f"rank {self.rank}: {type(problem).__name__}: {problem}")
            error = problem if isinstance(problem, UserError) else told
        raise_together(self.world, error)
        return found


def _run(run: Callable[[], Result]) -> Result:
    """Returns a function's result. Raises: UserError for what the system says of a file."""
    try:
        return run()
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError.of_system(error) from error


@contextmanager
def launched() -> Iterator[tuple[Share, torch.device | None]]:
    """Yields this process's share and device: all of the work and no particular device, or a part of it if a
    launcher such as torchrun has started several processes. An error on one rank is then raised on all.

    Raises: UserError if the launcher set only part of its variables.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share(), None
        return
    world = start(TIMEOUT_S)
    try:
        with together(world):
            yield Share(world), world.device
    finally:
        stop()
