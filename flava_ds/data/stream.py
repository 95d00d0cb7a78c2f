"""Shards read front to back through webdataset: no index, no random access, and an order by lane."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from flava_ds.config import Config
from flava_ds.data.order import hash64, permuted, source_seed
from flava_ds.data.samples import SampleDecoder, member_fields
from flava_ds.data.sources import SHARDS, Lane, Promises
from flava_ds.data.stream_draws import StreamDraws, hash_text
from flava_ds.data.stream_pipeline import Part
from flava_ds.errors import ConfigError
from flava_ds.storage.files import StreamedShard
from flava_ds.storage.retry import policy_of
from flava_ds.storage.shards import list_streamed

_DEAL, _SHARDS, _BUFFER = 7, 8, 9
"""Domain separators in addition to those of data/order.py."""


class StreamedShards:
    """One source as a webdataset stream.

    Every lane has its own shards and shuffles them and their samples anew in every epoch.
    """

    promises = Promises(elastic=False, pooled_captions=False)
    length = None

    def __init__(self, config: Config, name: str) -> None:
        """Raises: DataError when shards are missing; ConfigError when code would run unpermitted."""
        source = config.data.sources[name]
        if (source.pipeline or source.shards.startswith("pipe:")) and not source.allow_code:
            what = f"pipeline '{source.pipeline}'" if source.pipeline else "a 'pipe:' command in shards"
            raise ConfigError(
                f"source '{name}': {what} would run code; if you trust it, pass "
                f"--data.sources.{name}.allow-code, which no saved file can set"
            )
        self.config, self.name, self.source, self.kind = config, name, source, source.kind
        self.seed = source_seed(name, source.seed)
        self.shards = list_streamed(source.shards, name, policy_of(config), pipes=source.allow_code)
        self.fields, self.required = member_fields(name, source)
        self.decoder = SampleDecoder(config, name)

    def open(self, lane: Lane) -> StreamDraws:
        """Opens a lane's stream. Raises: ConfigError, DataError when the user's pipeline fails to load."""
        return StreamDraws(self, lane)

    def state(self) -> dict[str, Any]:
        """Returns everything that determines the order of each lane."""
        skip_list = self.decoder.skip_list
        shuffled = "stream in shard order"
        if self.config.data.shuffle:
            shuffled = f"stream through a buffer of {self.source.shuffle_buffer}"
        return {
            "samples": None,
            SHARDS: f"shards {self._named}",
            "order": shuffled + (f" by {self.source.pipeline}" if self.source.pipeline else ""),
            "skip_list": skip_list.fingerprint if skip_list is not None else None,
        }

    def seen(self) -> dict[str, Any]:
        """Returns what must be equal in every rank's list of shards."""
        return {"the names of its shards": self._named}

    @functools.cached_property
    def _named(self) -> str:
        """Hashes the names of the shards, in order and without their folders."""
        return _hash_names(self.shards)

    def named(self, lane: Lane) -> str:
        """Hashes the names of a lane's shards."""
        return _hash_names(sorted(self.shards_of(lane, 0), key=str))

    def notes(self, lane: Lane) -> list[str]:
        """Returns log lines: the guarantees that a stream lacks, and the cost of too few shards."""
        which = f"{lane.ranks} ranks x {lane.each} loader processes"
        lines = [
            f"source '{self.name}': {len(self.shards)} shards read as streams by {which}; the order is exact "
            "only for this topology, epochs end at different steps, and a resume re-reads a stream's epoch "
            "up to its position, without decoding"
        ]
        if len(self.shards) < lane.total:
            lines.append(
                f"source '{self.name}': {len(self.shards)} shards are fewer than its {lane.total} streams: "
                f"each stream reads all shards and keeps every {lane.total}th sample; with {lane.total} "
                "shards or more, each shard is read once"
            )
        return lines

    def shards_of(self, lane: Lane, epoch: int) -> tuple[StreamedShard, ...]:
        """Returns a lane's shards in an epoch's order.

        The set of shards never changes, so every epoch of a lane has the same samples.
        """
        count, shuffle = len(self.shards), self.config.data.shuffle
        dealt = np.arange(count)
        if shuffle:
            dealt = _permutation(count, hash64(_DEAL, self.config.seed, self.seed))
        whole = count < lane.total
        mine = dealt if whole else dealt[lane.index :: lane.total]
        if shuffle:
            # lanes that share all shards and keep every nth sample must count them in the same order
            lane_or_all = 0 if whole else lane.index
            key = hash64(_SHARDS, self.config.seed, self.seed, epoch, lane_or_all)
            mine = mine[_permutation(len(mine), key)]
        return tuple(self.shards[number] for number in mine.tolist())

    def part(self, lane: Lane, epoch: int) -> Part:
        """Returns what a lane reads in an epoch."""
        seed = int(hash64(_BUFFER, self.config.seed, self.seed, epoch, lane.index))
        return Part(
            config=self.config,
            name=self.name,
            shards=self.shards_of(lane, epoch),
            epoch=epoch,
            seed=seed,
            lane=lane,
        )


def _permutation(count: int, key: np.ndarray) -> np.ndarray:
    """Returns the permutation of 0 .. count - 1 that the key determines: [count] int64."""
    return permuted(np.arange(count), np.full(count, key, dtype=np.uint64), count)


def _hash_names(shards: Iterable[StreamedShard]) -> str:
    """Hashes names of shards, in order and without their folders."""
    names = "\n".join(str(shard).rsplit("/", 1)[-1] for shard in shards)
    return f"{hash_text(names):016x}"
