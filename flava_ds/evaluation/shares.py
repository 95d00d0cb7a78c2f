"""Divides encoding among ranks that evaluate one model together.

Every rank encodes every W-th batch and receives all results, so all compute the same numbers. Everything else
(e.g. a probe's fit) runs on every rank: that takes as long as running it on one while the others wait, and no
rank waits in a collective for longer than the ranks' speeds differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.errors import UserError
from flava_ds.ranks.distributed import World, from_main, gather_objects, raise_together, start, stop, together

Result = TypeVar("Result")
TIMEOUT_S = 3600
"""Longest time that ranks of `flava-ds evaluate` wait for each other, for example while one fits a probe."""


class Share(Protocol):
    """Divides the batches of one set; all ranks iterate in the same order."""

    @property
    def parts(self) -> int:
        """Returns how many processes share the work."""

    @property
    def is_main(self) -> bool:
        """Returns True on the process that writes files."""

    def mine(self, starts: range) -> list[int]:
        """Returns the first rows of the batches that this rank encodes."""

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Encodes this rank's batches and returns those of all ranks in order."""

    def add(self, mine: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Runs this rank's work and returns the sums of its tensors over all ranks."""

    def from_main(self, make: Callable[[], Result]) -> Result:
        """Runs `make` on the process that writes files and returns its result on all."""

    def together(self, run: Callable[[], Result]) -> Result:
        """Runs what all processes run, and raises an error of one on all."""


class Alone:
    """A single process that encodes everything."""

    parts, is_main = 1, True

    def mine(self, starts: range) -> list[int]:
        """Returns all batches."""
        return list(starts)

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Returns the batches unchanged."""
        return list(mine)

    def add(self, mine: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Returns the tensors unchanged."""
        return mine()

    def from_main(self, make: Callable[[], Result]) -> Result:
        """Runs it."""
        return _run(make)

    def together(self, run: Callable[[], Result]) -> Result:
        """Runs it."""
        return _run(run)


class AmongRanks:
    """All ranks of a run. An error on one of them is raised on all."""

    def __init__(self, world: World) -> None:
        self.world, self.parts, self.is_main = world, world.size, world.is_main

    def mine(self, starts: range) -> list[int]:
        """Returns every W-th batch."""
        return list(starts)[self.world.rank :: self.world.size]

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Encodes this rank's batches and gathers the others' over the host's process group.

        Raises: the error of the first rank that failed.
        """
        parts = self.together(lambda: [part.cpu() for part in mine])
        everyone = gather_objects(self.world, parts)
        return [
            everyone[number % self.world.size][number // self.world.size] for number in range(len(starts))
        ]

    def add(self, mine: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Adds up the ranks' tensors in one collective on the device.

        Raises: the error of the first rank that failed.
        """
        tensors = self.together(mine)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=None if flat.is_cuda else self.world.host_group)
        sizes = [tensor.numel() for tensor in tensors]
        return [part.view_as(tensor) for part, tensor in zip(flat.split(sizes), tensors, strict=True)]

    def from_main(self, make: Callable[[], Result]) -> Result:
        """Runs it on the first rank and sends the result to the others.

        Raises: its error, on all ranks.
        """
        made: Any = self.together(make if self.is_main else lambda: None)
        found: Result = from_main(self.world, made)
        return found

    def together(self, run: Callable[[], Result]) -> Result:
        """Runs this rank's work; raises an error of any rank on all of them, where they next wait for it."""
        found: Any = None
        error: Exception | None = None
        try:
            found = _run(run)
        except Exception as problem:  # the other ranks must not wait forever for this one
            if getattr(problem, "on_all_ranks", False):
                raise
            # RuntimeError pickles; an arbitrary exception may not
            told = RuntimeError(f"rank {self.world.rank}: {type(problem).__name__}: {problem}")
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
        yield Alone(), None
        return
    world = start(TIMEOUT_S)
    try:
        with together(world):
            yield AmongRanks(world), world.device
    finally:
        stop()
