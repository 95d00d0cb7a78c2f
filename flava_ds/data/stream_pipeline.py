"""One epoch of one lane as a webdataset pipeline: the package's own stages, or a user's pipeline."""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import webdataset as wds

from flava_ds.config import Config
from flava_ds.data.sources import Lane
from flava_ds.errors import DataError, UserError
from flava_ds.storage import faults
from flava_ds.storage.files import RemoteShard, SequentialReader, StreamedShard, open_shard
from flava_ds.storage.members import sample_key, sample_members

log = logging.getLogger(__name__)

RawSample = dict[str, Any]
"""A webdataset sample: '__key__', '__url__', and bytes by suffix."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one lane reads in one epoch; the argument of a user's pipeline."""

    config: Config
    name: str
    """Name of the source."""
    shards: tuple[StreamedShard, ...]
    """In reading order."""
    epoch: int
    seed: int
    """Seeds everything random in this part; differs by lane and epoch."""
    lane: Lane


class Member(bytes):
    """A member's bytes, and their offset in the shard."""

    offset: int = -1


@dataclass(frozen=True)
class Unread:
    """A member that was not read, because it is not needed or too large."""

    size: int
    offset: int


def own_pipeline(
    part: Part,
    wanted: Collection[str],
    every: EveryNth | None,
    tell: Callable[[StreamedShard, Counter[str]], None],
) -> Iterator[RawSample]:
    """Yields the samples of a part, grouped by key and shuffled through the buffer.

    Members with the suffixes in `wanted` come as bytes, all others as Unread. `every` keeps a share of the
    samples; `tell` is called with the losses of each shard.
    """
    config = part.config
    buffer = config.data.sources[part.name].shuffle_buffer
    shuffle = None
    if config.data.shuffle:
        shuffle = wds.shuffle(buffer, initial=buffer, rng=random.Random(part.seed))
    return iter(
        wds.DataPipeline(
            lambda: iter(part.shards),
            functools.partial(_members, wanted=wanted, most_bytes=config.data.max_member_bytes, tell=tell),
            functools.partial(wds.tariterators.group_by_keys, keys=_split, handler=_pass_over_duplicate),
            every,
            shuffle,
        )
    )


def users_pipeline(
    part: Part, function: Callable[[Part], Iterable[RawSample]], every: EveryNth | None
) -> Iterator[RawSample]:
    """Yields the samples of a user's pipeline.

    Raises: DataError for any error of the pipeline, and for an item that is not a sample.
    """
    where = f"source '{part.name}': pipeline '{part.config.data.sources[part.name].pipeline}'"
    try:
        for sample in function(part) if every is None else every(function(part)):
            if not isinstance(sample, dict) or "__key__" not in sample:
                raise DataError(
                    f"{where} yields {sample!r:.60}; expected a dictionary with '__key__' and bytes by "
                    "suffix, such as 'jpg' and 'txt'"
                )
            yield sample
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{where} failed: {type(error).__name__}: {error}") from error


def _members(
    shards: Iterable[StreamedShard],
    *,
    wanted: Collection[str],
    most_bytes: int,
    tell: Callable[[StreamedShard, Counter[str]], None],
) -> Iterator[dict[str, Any]]:
    """Yields webdataset's file samples, and its marker at the end of each shard.

    Uses this package's tar reader instead of webdataset's: it checks a member's size before reading it,
    counts the same faults as the index, and reads through the storage layer with its rules for URLs, retries
    and commands.
    """
    for shard in shards:
        found: Counter[str] = Counter()
        file = open_shard(shard)
        if isinstance(shard, RemoteShard):
            file = SequentialReader(file, checksum=False)
        with closing(file):
            for name, _, suffix, offset, size in sample_members(file, found):
                data: Member | Unread = Unread(size, offset)
                if suffix in wanted and size <= most_bytes:
                    data = Member(file.pread(size, offset))
                    data.offset = offset
                    if len(data) < size:
                        found[faults.TRUNCATED_SHARD] += 1
                        break
                yield {"fname": name.decode("utf-8", "replace"), "data": data, "__url__": str(shard)}
        tell(shard, found)
        yield {}


@dataclass(frozen=True)
class EveryNth:
    """A webdataset stage that keeps samples first, first + step, ..."""

    first: int
    step: int

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return itertools.islice(samples, self.first, None, self.step)


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name into key and suffix, as the index does."""
    key, suffix = sample_key(name.encode())
    return key.decode("utf-8", "replace"), suffix


def _pass_over_duplicate(error: Exception) -> bool:
    """Ignores a second member of the same name, as the index does."""
    log.debug("%s", error)
    return True
