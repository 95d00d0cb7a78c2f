"""Shards read from front to back through webdataset: no index, no random access, and an order that belongs to
the lanes that read.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flava_ds.config import Config
from flava_ds.data.order import hash64, permuted, sample_seed, source_seed
from flava_ds.data.samples import Sample, SampleDecoder, member_fields
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import Lane, Promises
from flava_ds.data.stream_pipeline import (
    EveryNth,
    Member,
    Part,
    RawSample,
    Unread,
    own_pipeline,
    users_pipeline,
)
from flava_ds.data.user_pipeline import load_pipeline
from flava_ds.errors import ConfigError, DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.files import Shard
from flava_ds.storage.retry import policy_of
from flava_ds.storage.shards import list_shards

_DEAL, _SHARDS, _BUFFER = 7, 8, 9
"""Domain separators beside those of data/order.py."""
_MAX_ATTEMPTS = 200
_MAX_PARTNERS = 16


class StreamedShards:
    """One source as a webdataset stream: every lane has its own shards, and shuffles them and their samples
    anew in every epoch.
    """

    promises = Promises(elastic=False, pooled_captions=False)
    length = None

    def __init__(self, config: Config, name: str) -> None:
        """Raises: DataError when shards are missing; ConfigError when code would run that the options do not
        allow, or mismatches have no partner.
        """
        source = config.data.sources[name]
        if (source.pipeline or source.shards.startswith("pipe:")) and not source.allow_code:
            what = f"pipeline '{source.pipeline}'" if source.pipeline else "a 'pipe:' command in shards"
            raise ConfigError(
                f"source '{name}': {what} would run code; if you trust it, say "
                f"--data.sources.{name}.allow-code, which no saved file can"
            )
        self.config, self.name, self.source, self.kind = config, name, source, source.kind
        self.seed = source_seed(name, source.seed)
        self.shards: list[Shard] = list_shards(
            source.shards, name, policy_of(config), pipes=source.allow_code
        )
        self.fields, self.required = member_fields(name, source)
        self.decoder = SampleDecoder(config, name)

    def open(self, lane: Lane) -> StreamDraws:
        """Opens one lane's stream. Raises: ConfigError or DataError when the user's pipeline cannot be
        loaded.
        """
        return StreamDraws(self, lane)

    def state(self) -> dict[str, Any]:
        """Returns what fixes the order of each lane."""
        skip_list = self.decoder.skip_list
        names = "\n".join(str(shard).rsplit("/", 1)[-1] for shard in self.shards)
        shuffled = (
            f"stream through a buffer of {self.source.shuffle_buffer}"
            if self.config.data.shuffle
            else "stream in shard order"
        )
        return {
            "samples": None,
            "keys": f"{_hash_text(names):016x}",
            "order": shuffled + (f" by {self.source.pipeline}" if self.source.pipeline else ""),
            "skip_list": skip_list.fingerprint if skip_list is not None else None,
        }

    def seen(self) -> dict[str, Any]:
        """Returns what every rank's list of shards must have in common."""
        return {"the names of its shards": [str(shard).rsplit("/", 1)[-1] for shard in self.shards]}

    def notes(self, lane: Lane) -> list[str]:
        """Returns what a stream cannot promise, and what too few shards cost."""
        which = f"{lane.ranks} ranks x {lane.each} loader processes"
        lines = [
            f"source '{self.name}': shards read as streams, {len(self.shards)} by {which}; the order is "
            "exact for these alone, epochs end at different steps, "
            "and a resume reads each stream again, without decoding, up to where it was"
        ]
        if len(self.shards) < lane.total:
            lines.append(
                f"source '{self.name}': {len(self.shards)} shards are fewer than its {lane.total} streams: "
                "each reads all shards and keeps every "
                f"{lane.total}th sample; with {lane.total} shards or more, each shard is read once"
            )
        return lines

    def shards_of(self, lane: Lane, epoch: int) -> tuple[Shard, ...]:
        """Returns a lane's shards in an epoch's order. Which shards are a lane's never changes, so every
        epoch of a lane has the same samples.
        """
        count, shuffle = len(self.shards), self.config.data.shuffle
        dealt = (
            _permutation(count, hash64(_DEAL, self.config.seed, self.seed)) if shuffle else np.arange(count)
        )
        whole = count < lane.total
        mine = dealt if whole else dealt[lane.index :: lane.total]
        if shuffle:  # lanes that keep samples in turn have to count them in the same order
            mine = mine[
                _permutation(
                    len(mine), hash64(_SHARDS, self.config.seed, self.seed, epoch, 0 if whole else lane.index)
                )
            ]
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


class StreamDraws:
    """One lane's samples. A position counts what its pipeline yields; an unusable sample's position gets the
    one after it, too.

    So what stands at a position does not depend on what has been decoded before, and a lane can go to any
    position by counting.
    """

    def __init__(self, source: StreamedShards, lane: Lane) -> None:
        self.source, self.lane, self.config = source, lane, source.config
        self.pipeline: Callable[[Part], Iterable[dict[str, Any]]] | None = None
        if source.source.pipeline:
            self.pipeline = load_pipeline(source.source.pipeline, f"source '{source.name}'")
        self._skips: SkipLog | None = None
        self._epoch_length: int | None = None
        self._begin(0, 0)

    def samples(self, positions: np.ndarray, skips: SkipLog) -> Iterator[Sample]:
        """Yields the sample at each position, or the first usable one after it."""
        self._go_to(int(positions[0]))
        self._skips = skips
        for _ in range(len(positions)):
            yield self._usable(skips)
            self._ahead.popleft()
            self._position += 1

    def partners(
        self, positions: np.ndarray, rows: np.ndarray, draws: np.ndarray, batch: Sequence[Sample]
    ) -> Iterator[Iterator[str]]:
        """Yields the captions of up to _MAX_PARTNERS other samples of the same micro-batch, in turn from the
        one that the draw picks.
        """
        others = len(batch) - 1
        for row, draw in zip(rows.tolist(), draws.tolist(), strict=True):
            places = (
                (row + 1 + (int(draw * others) + turn) % others) % len(batch)
                for turn in range(min(others, _MAX_PARTNERS))
            )
            yield (batch[place].text for place in places)

    def _usable(self, skips: SkipLog) -> Sample:
        """Decodes what stands at the position, or after it; looks ahead without taking."""
        for attempt in range(_MAX_ATTEMPTS):
            if attempt == len(self._ahead):
                self._ahead.append(next(self._stream))
            epoch, raw = self._ahead[attempt]
            skips.epoch = epoch
            try:
                sample = self._decode(epoch, raw, attempt)
            except SampleFault as fault:
                if attempt == 0:  # one after it is told when its own position comes
                    skips.bad(self._describe(raw), fault)
                continue
            skips.good()
            return sample
        raise DataError(
            f"source '{self.source.name}': {_MAX_ATTEMPTS} samples in a row are unusable: "
            f"{skips.summary()}; repair the shards"
        )

    def _decode(self, epoch: int, raw: dict[str, Any], attempt: int) -> Sample:
        """Takes the fields that the source needs out of a webdataset sample and decodes them. Raises:
        SampleFault with the reason.
        """
        source, key, shard = self.source, str(raw["__key__"]), str(raw.get("__url__", ""))
        source.decoder.check_key(key, shard)
        fields = {}
        for field, suffixes in source.fields.items():
            value = next((raw[suffix] for suffix in suffixes if suffix in raw), None)
            if value is None:
                raise SampleFault(source.required[field])
            source.decoder.check_size(field, value.size if isinstance(value, Unread) else len(value))
            fields[field] = value.encode() if isinstance(value, str) else value
        index = _hash_text(f"{shard.rsplit('/', 1)[-1]}\n{key}")
        seed = int(sample_seed(self.config.seed, source.seed, epoch, index, attempt))
        return source.decoder(fields, key, index, seed)

    def _describe(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Tells a sample from all others, for the quarantine list."""
        offsets = [value.offset for value in raw.values() if isinstance(value, Member | Unread)]
        return {
            "source": self.source.name,
            "shard": str(raw.get("__url__", "")),
            "key": str(raw["__key__"]),
            "offset": min(offsets, default=-1),
        }

    def _begin(self, epoch: int, position: int) -> None:
        """Stands at the beginning of an epoch, which is at `position`."""
        self._stream, self._ahead, self._position = self._epochs(epoch), deque(), position

    def _go_to(self, position: int) -> None:
        """Passes over samples until `position` is next, without decoding them. Our own pipeline yields the
        same number in every epoch, so once that is known whole epochs are jumped."""
        if position != self._position:
            self._skips = None  # what is passed over was told when it was read
        if position < self._position:
            self._begin(0, 0)
        while self._position < position:
            length = self._epoch_length if self.pipeline is None else None
            if length is not None and position - self._position >= length:
                self._begin(position // length, position // length * length)
                continue
            if self._ahead:
                self._ahead.popleft()
            else:
                next(self._stream)
            self._position += 1

    def _epochs(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the lane's samples, epoch after epoch, with the epoch's number."""
        for epoch in itertools.count(first):
            count = 0
            for sample in self._pipeline(self.source.part(self.lane, epoch)):
                count += 1
                yield epoch, sample
            if not count:
                raise DataError(
                    f"source '{self.source.name}': stream {self.lane.index} of {self.lane.total} finds no "
                    f"sample in {len(self.source.shards)} shards; "
                    "add shards, or read with fewer ranks or loader processes"
                )
            self._epoch_length = count

    def _pipeline(self, part: Part) -> Iterator[RawSample]:
        """Returns the samples of an epoch, of which a lane that reads all shards keeps its share."""
        every = (
            EveryNth(self.lane.index, self.lane.total) if len(self.source.shards) < self.lane.total else None
        )
        if self.pipeline is not None:
            return users_pipeline(part, self.pipeline, every)
        wanted = {suffix for suffixes in self.source.fields.values() for suffix in suffixes}
        return own_pipeline(part, wanted, every, self._tell)

    def _tell(self, shard: Shard, found: Counter[str]) -> None:
        """Counts what a shard has lost, unless it is only passed over."""
        if self._skips is not None:
            entry = {"source": self.source.name, "shard": str(shard), "key": "", "offset": -1}
            for reason in Counter(faults.lossy(found)).elements():
                self._skips.bad(entry, SampleFault(reason))


def _permutation(count: int, key: np.ndarray) -> np.ndarray:
    """Returns a permutation of 0 .. count - 1 that the key determines: [count] int64."""
    return permuted(np.arange(count), np.full(count, key, dtype=np.uint64), count)


def _hash_text(text: str) -> int:
    """Hashes text to 63 bits."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "little") >> 1
