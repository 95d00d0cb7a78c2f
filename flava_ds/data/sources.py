"""The protocol between sources and the loader. Two readers implement it: indexed shards and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flava_ds.config import Config, SourceConfig
from flava_ds.data.samples import Sample
from flava_ds.data.skip_log import SkipLog
from flava_ds.errors import ConfigError

MAX_ATTEMPTS = 200
"""Unusable samples in a row after which a reader gives up."""
MAX_PARTNERS = 16
"""Other samples that are asked for a mismatched caption, at most."""
SHARDS = "shards"
"""The part of a stream's state that names its shards, which may change: a resume says so and goes on."""
CONTENT = "content"
"""The part of a source's state that does not fix the order of its samples, but tells what they are."""


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What a reader guarantees about the order of samples when the topology changes.

    On one topology, every source gives the same order in every run.
    """

    elastic: bool
    """Positions belong to the source: any number of ranks, workers and accumulation steps reads the same
    samples in the same order. Otherwise they belong to a lane, and the loader logs once, at the start, that
    another topology reads another order.
    """
    pooled_captions: bool
    """A mismatched caption can come from the whole global batch; otherwise, from the same micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One of the streams of a source without elastic order: one dataloader worker of one rank."""

    rank: int = 0
    ranks: int = 1
    number: int = 0
    """The worker's number on its rank."""
    each: int = 1
    """Workers per rank."""

    @property
    def index(self) -> int:
        """The lane's number among all lanes."""
        return self.rank * self.each + self.number

    @property
    def total(self) -> int:
        """Number of lanes."""
        return self.ranks * self.each


class Draws(Protocol):
    """A source opened in the process that reads it.

    Positions count the samples of an endless stream: the source's or the lane's.
    """

    def samples(self, positions: np.ndarray, skips: SkipLog) -> Iterator[Sample]:
        """Yields one usable, decoded sample for each position, in order.

        Reports unusable samples to `skips.bad` and replaces them; reports usable ones to `skips.good` and
        sets `skips.epoch` for the quarantine list. `positions` [b] int64 are consecutive and may start
        anywhere; the sample at a position does not depend on what was read before.

        Raises: DataError when nothing is usable, or more is unusable than `skips` allows.
        """

    def partners(
        self,
        positions: np.ndarray,
        rows: np.ndarray,
        draws: np.ndarray,
        batch: Sequence[Sample],
        *,
        tags: bool = False,
    ) -> Iterator[Iterator[str]]:
        """Yields, for each of the `rows` of the batch at `positions`, captions that it may borrow, or tags.

        The draw of a row in [0, 1) picks where they come from. Only sources with regions are asked for tags.
        """


class Source(Protocol):
    """One corpus as the loader sees it. Built in the trainer's process, picklable, opened in workers.

    Its samples are a function of the run's seed, its own seed, the lane and the position, never of time, a
    global generator, or earlier reads. `tests/data/source_contract.py` tests every implementation.
    """

    name: str
    """The key in config.data.sources."""
    source: SourceConfig
    seed: int
    """The source_seed of the name (data/order.py)."""
    promises: Promises

    @property
    def kind(self) -> str: ...

    @property
    def length(self) -> int | None:
        """Samples per epoch; None when unknown before all have been read."""

    def open(self, lane: Lane) -> Draws:
        """Opens the source in the process that reads it."""

    def state(self) -> dict[str, Any]:
        """Returns everything that determines the order of samples, as plain JSON.

        Checkpoints keep it, and a resume that would change it is refused, unless only SHARDS differ. The
        entry CONTENT tells the samples from others with the same keys, by the words of messages; None for
        what is not known.
        """

    def seen(self) -> dict[str, Any]:
        """Returns what must be equal on all ranks, as each reads its own copy; messages use the keys."""

    def notes(self, lane: Lane) -> list[str]:
        """Returns log lines for the start: samples left out, and this topology's effect on the order."""


def open_source(config: Config, name: str, table: Path | None = None) -> Source:
    """Builds source `name` according to its `reader` or `reading`. `table` is the folder that prepare_source
    (indexed.py) has returned for it on this machine.

    Raises: DataError or ConfigError when it cannot be used.
    """
    own = config.data.sources[name].reader
    if own is not None:
        return with_parts(name, own.build(config, name), Source)
    if config.data.sources[name].reading == "stream":
        from flava_ds.data.stream import StreamedShards  # here, because webdataset takes a while to import

        return StreamedShards(config, name)
    from flava_ds.data.indexed import IndexedShards

    return IndexedShards(config, name, table=table)


def with_parts(name: str, found: Any, protocol: type) -> Any:
    """Returns what a reader of one's own has built for source `name`, once it has all parts of a protocol.

    Raises: ConfigError that names those it lacks.
    """
    parts = [*protocol.__annotations__, *(part for part in vars(protocol) if not part.startswith("_"))]
    if lacking := [part for part in parts if not hasattr(found, part)]:
        raise ConfigError(
            f"source '{name}': its reader's {type(found).__name__} lacks {', '.join(lacking)}; "
            f"{protocol.__name__} in flava_ds/data/sources.py says what each is"
        )
    return found


def changed_content(name: str, before: object, now: Mapping[str, str | None] | None) -> list[str]:
    """Says what of a source's content differs, among what both sides know: an index may have got its
    checksums since.
    """
    known = before if isinstance(before, Mapping) else {}
    found = [what for what, value in (now or {}).items() if value and known.get(what) not in (None, value)]
    return [f"source '{name}': {' and '.join(found)} differ"] if found else []
