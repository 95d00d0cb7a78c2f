"""Who encodes what when several ranks evaluate one model together.

Every rank encodes every W-th batch and gets all results, so each then computes the same numbers. Work that is
not encoding (a probe's fit) every rank does for itself, which takes as long as if one did it and the others
waited, and no rank ever stands in a collective for longer than ranks differ in speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from flava_ds.errors import UserError
from flava_ds.ranks.distributed import World, gather_objects, raise_together


class Share(Protocol):
    """Divides the batches of one set, which all ranks go through in the same order."""

    def mine(self, starts: range) -> list[int]:
        """Returns the first rows of the batches that this rank encodes."""

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Runs this rank's batches, and returns those of all ranks in order."""


class Alone:
    """One process that does everything."""

    def mine(self, starts: range) -> list[int]:
        """All."""
        return list(starts)

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Returns them as they are."""
        return list(mine)


class AmongRanks:
    """All ranks of a run. An error that one of them meets is raised on all."""

    def __init__(self, world: World) -> None:
        self.world = world

    def mine(self, starts: range) -> list[int]:
        """Every W-th."""
        return list(starts)[self.world.rank :: self.world.size]

    def join(self, starts: range, mine: Iterator[Tensor]) -> list[Tensor]:
        """Runs this rank's batches, and gathers the others' through the host's group.

        Raises: the error of the first rank that met one.
        """
        parts, error = [], None
        try:
            parts = [part.cpu() for part in mine]
        except UserError as problem:
            error = problem
        except Exception as problem:  # whatever it is, the other ranks must not wait for this one's features
            # which pickles
            error = RuntimeError(f"rank {self.world.rank}: {type(problem).__name__}: {problem}")
        raise_together(self.world, error)
        everyone = gather_objects(self.world, parts)
        return [
            everyone[number % self.world.size][number // self.world.size] for number in range(len(starts))
        ]
