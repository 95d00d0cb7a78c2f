"""One lane of a stream: where it is, how it seeks, and the next usable sample."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flava_ds.data.epoch_lengths import EpochLength
from flava_ds.data.order import sample_seed
from flava_ds.data.samples import Sample, printable, tags_of
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import MAX_ATTEMPTS, MAX_PARTNERS, Lane
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
from flava_ds.errors import DataError
from flava_ds.processes import sign_of_life
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault, counted
from flava_ds.storage.files import StreamedShard

if TYPE_CHECKING:
    from flava_ds.data.stream import StreamedShards

log = logging.getLogger(__name__)

_FAR = 50_000
"""Samples that are passed over without a word: some seconds' reading."""


class StreamDraws:
    """One lane's samples. Positions count what the pipeline yields.

    The position of an unusable sample gets the next usable one, which also keeps its own position. So the
    sample at a position does not depend on what was decoded before, and a lane can seek by counting.
    """

    def __init__(self, source: StreamedShards, lane: Lane) -> None:
        self.source, self.lane, self.config = source, lane, source.config
        self.pipeline: Callable[[Part], Iterable[dict[str, Any]]] | None = None
        if source.source.pipeline:
            self.pipeline = load_pipeline(source.source.pipeline, f"source '{source.name}'")
        self._skips: SkipLog | None = None
        self._known = EpochLength(self.config.run_path, source.name, lane, source.named(lane))
        self._epoch_length = None if self.pipeline is not None else self._known.read()
        self._left_out: Counter[str] = Counter()
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
        self,
        positions: np.ndarray,
        rows: np.ndarray,
        draws: np.ndarray,
        batch: Sequence[Sample],
        *,
        tags: bool = False,
    ) -> Iterator[Iterator[str]]:
        """Yields the captions of up to MAX_PARTNERS other samples of the same micro-batch, or their tags.

        Starts at the one that the draw picks.
        """
        others = len(batch) - 1
        for row, draw in zip(rows.tolist(), draws.tolist(), strict=True):
            places = (
                (row + 1 + (int(draw * others) + turn) % others) % len(batch)
                for turn in range(min(others, MAX_PARTNERS))
            )
            lent = (tags_of(batch[place]) if tags else batch[place].text for place in places)
            yield (text for text in lent if text)

    def _usable(self, skips: SkipLog) -> Sample:
        """Decodes the sample at the current position, or the first usable one after it, without advancing."""
        reasons = Counter[str]()
        for attempt in range(MAX_ATTEMPTS):
            if attempt == len(self._ahead):
                self._ahead.append(next(self._stream))
            epoch, raw = self._ahead[attempt]
            skips.epoch = epoch
            try:
                sample = self._decode(epoch, raw, attempt)
            except SampleFault as fault:
                reasons[fault.reason] += 1
                if attempt == 0:  # a later sample is reported at its own position
                    skips.bad(self._describe(raw), fault)
                continue
            skips.good()
            return sample
        raise skips.none_usable(reasons)

    def _decode(self, epoch: int, raw: dict[str, Any], attempt: int) -> Sample:
        """Selects the fields that the source needs from a webdataset sample and decodes them.

        Raises: SampleFault with the reason; DataError for what a user's pipeline has decoded already.
        """
        source, key, shard = self.source, str(raw["__key__"]), str(raw.get("__url__", ""))
        source.decoder.check_key(key, shard)
        fields: dict[str, bytes] = {}
        for field, suffixes in source.fields.items():
            value = next((raw[suffix] for suffix in suffixes if suffix in raw), None)
            if value is None:
                raise SampleFault(source.required[field])
            value = value.encode() if isinstance(value, str) else value
            if not isinstance(value, bytes | bytearray | Unread):
                raise DataError(
                    f"source '{source.name}': pipeline '{source.source.pipeline}' yields a "
                    f"{type(value).__name__} as {field} of '{printable(key)}'; yield undecoded bytes"
                )
            if isinstance(value, Unread):
                raise source.decoder.too_large(field, value.size)
            source.decoder.check_size(field, len(value))
            fields[field] = bytes(value)
        index = hash_text(f"{shard.rsplit('/', 1)[-1]}\n{key}")
        seed = int(sample_seed(self.config.seed, source.seed, epoch, index, attempt))
        return source.decoder(fields, key, index, seed)

    def _describe(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Identifies a sample in the quarantine list."""
        offsets = [value.offset for value in raw.values() if isinstance(value, Member | Unread)]
        return {
            "source": self.source.name,
            "shard": str(raw.get("__url__", "")),
            "key": str(raw["__key__"]),
            "offset": min(offsets, default=-1),
        }

    def _begin(self, epoch: int, position: int) -> None:
        """Moves to the beginning of an epoch, which is at `position`."""
        self._stream, self._position = self._epochs(epoch), position
        self._ahead: deque[tuple[int, RawSample]] = deque()

    def _go_to(self, position: int) -> None:
        """Advances to `position` without decoding the samples in between.

        The package's own pipeline yields the same number of samples in every epoch, so once that is known it
        skips whole epochs. A user's pipeline may not. Says so when it is far, and gives signs of life, as the
        lane's next batch may be far beyond data.worker_timeout_s.
        """
        if position != self._position:
            self._skips = None  # skipped samples were reported when they were first read
        if position < self._position:
            self._begin(0, 0)
        far = position - self._position > _FAR
        if far:
            log.info(
                "source '%s': stream %d of %d seeks its sample %d, where the run goes on: a stream has no "
                "index, so it reads on from sample %d without decoding, and leaves out whole epochs if it "
                "knows how long they are; its first batch comes after that",
                *(self.source.name, self.lane.index, self.lane.total, position, self._position),
            )
        while self._position < position:
            length = self._epoch_length
            if length is not None and position - self._position >= length:
                self._begin(position // length, position // length * length)
                continue
            if self._ahead:
                self._ahead.popleft()
            else:
                next(self._stream)
            self._position += 1
            sign_of_life()
        if far:
            log.info(
                "source '%s': stream %d of %d has reached its sample %d",
                *(self.source.name, self.lane.index, self.lane.total, position),
            )

    def _epochs(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the lane's samples, epoch after epoch, with the epoch's number."""
        for epoch in itertools.count(first):
            count = 0
            self._left_out.clear()
            for sample in self._pipeline(self.source.part(self.lane, epoch)):
                count += 1
                yield epoch, sample
            if not count:
                raise DataError(
                    f"source '{self.source.name}': stream {self.lane.index} of {self.lane.total} finds no "
                    f"sample in {len(self.source.shards)} shards (left out: {counted(self._left_out)}); add "
                    "shards, or read with fewer ranks or loader processes"
                )
            self._learn(count)

    def _learn(self, length: int) -> None:
        """Keeps the length of an epoch, which a user's pipeline may change."""
        if self.pipeline is not None or length == self._epoch_length:
            return
        if self._epoch_length is not None:
            log.warning(
                "source '%s': stream %d of %d has %d samples in this epoch, and had %d in an earlier one: "
                "its shards have changed, so the order is not that of a run without an interruption",
                *(self.source.name, self.lane.index, self.lane.total, length, self._epoch_length),
            )
        self._epoch_length = length
        self._known.write(length)

    def _pipeline(self, part: Part) -> Iterator[RawSample]:
        """Returns the samples of an epoch; a lane that reads all shards keeps only its share."""
        every = None
        if len(self.source.shards) < self.lane.total:
            every = EveryNth(self.lane.index, self.lane.total)
        if self.pipeline is not None:
            return users_pipeline(part, self.pipeline, every)
        wanted = {suffix for suffixes in self.source.fields.values() for suffix in suffixes}
        return own_pipeline(part, wanted, every, self._tell)

    def _tell(self, shard: StreamedShard, found: Counter[str]) -> None:
        """Counts the losses of a shard, unless it is only being skipped."""
        self._left_out.update(found)
        if self._skips is None:
            sign_of_life()  # with few shards, a lane reads many of them for the next sample of its own
        else:
            entry = {"source": self.source.name, "shard": str(shard), "key": "", "offset": -1}
            for reason in Counter(faults.lossy(found)).elements():
                self._skips.bad(entry, SampleFault(reason))


def hash_text(text: str) -> int:
    """Hashes text to 63 bits."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "little") >> 1
