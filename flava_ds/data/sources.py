"""What a source of samples is to the loader, and which kinds there are: indexed shards, which can promise
everything, and webdataset streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flava_ds.config import Config, SourceConfig
from flava_ds.data.samples import Sample

if TYPE_CHECKING:
    from flava_ds.data.skip_log import SkipLog


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What the order of a source's samples can be relied on for. On one topology every source gives the same
    order in every run.
    """

    elastic: bool
    """Positions belong to the source: any number of ranks, loader processes and accumulation steps reads the
    same samples in the same order.

    Without it they belong to a lane, and the loader says once, at the start, that another topology reads
    another order.
    """
    pooled_captions: bool
    """A mismatched caption may come from anywhere in the step's global batch; without it, from the same
    micro-batch.
    """


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One of the streams that a source without elastic order is dealt to: a loader process of a rank."""

    rank: int = 0
    ranks: int = 1
    number: int = 0
    """Of the loader process on its rank."""
    each: int = 1
    """Loader processes of a rank."""

    @property
    def index(self) -> int:
        """Its number among all lanes."""
        return self.rank * self.each + self.number

    @property
    def total(self) -> int:
        """How many lanes there are."""
        return self.ranks * self.each


class Draws(Protocol):
    """A source opened where samples are read. Positions count the samples of an endless stream: the source's,
    or this lane's.
    """

    def samples(self, positions: np.ndarray, skips: SkipLog) -> Iterator[Sample]:
        """Yields one usable, decoded sample for each position, in order.

        What cannot be used is told to `skips.bad` and replaced by another sample; a usable one to
        `skips.good`, and the epoch to `skips.epoch`, which the quarantine list shows. `positions` [b] int64
        follow one another. They begin where the last call ended, or anywhere: what stands at a position is
        the same either way.

        Raises: DataError when there is nothing usable, or more is unusable than `skips` allows.
        """

    def partners(
        self, positions: np.ndarray, rows: np.ndarray, draws: np.ndarray, batch: Sequence[Sample]
    ) -> Iterator[Iterator[str]]:
        """Yields, for each of the `rows` of the batch at `positions`, captions that it may borrow, from the
        place that its draw in [0, 1) picks.
        """


class Source(Protocol):
    """One corpus as the loader, and nothing else, sees it. Built in the trainer's process, picklable, opened
    in loader processes.

    What it gives is a function of the run's seed, its own seed, the lane and the position: never of time, of
    a global generator, or of what was read before. `tests/data/source_contract.py` holds what every
    implementation is tested for.
    """

    name: str
    """The key in config.data.sources."""
    source: SourceConfig
    kind: str
    seed: int
    """order.source_seed of the name."""
    promises: Promises
    length: int | None
    """Samples of an epoch; None when that is not known before all have been read."""

    def open(self, lane: Lane) -> Draws:
        """Opens the source in the process that reads it."""

    def state(self) -> dict[str, Any]:
        """Returns what fixes the order of its samples, as plain JSON: checkpoints keep it, and a resume that
        would change it is refused.
        """

    def seen(self) -> dict[str, Any]:
        """Returns what all ranks must agree on, by the words that a message uses, because each reads its own
        copy.
        """

    def notes(self, lane: Lane) -> list[str]:
        """Returns lines for the log of rank 0 at the start: what is left out, and what this topology means
        for the order.
        """


def open_source(config: Config, name: str) -> Source:
    """Builds source `name` as its `reader` or `reading` says.

    Raises: DataError or ConfigError when it cannot serve.
    """
    own = config.data.sources[name].reader
    if own is not None:
        return own.build(config, name)
    if config.data.sources[name].reading == "stream":
        from flava_ds.data.stream import StreamedShards  # here, because webdataset takes a while to import

        return StreamedShards(config, name)
    from flava_ds.data.indexed import IndexedShards

    return IndexedShards(config, name)
