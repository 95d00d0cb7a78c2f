"""One epoch of one lane as a webdataset pipeline: its stages, or a pipeline of the user's own."""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import webdataset as wds

from flava_ds.config import Config
from flava_ds.data.sources import Lane
from flava_ds.errors import DataError, UserError
from flava_ds.storage import faults
from flava_ds.storage.files import RemoteShard, SequentialReader, Shard, open_shard
from flava_ds.storage.index import allowed, refusal, sample_key
from flava_ds.storage.tar_headers import tar_members

log = logging.getLogger(__name__)

RawSample = dict[str, Any]
"""webdataset's: '__key__', '__url__', and bytes by suffix."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one lane reads in one epoch; what a pipeline of the user's own gets."""

    config: Config
    name: str
    """Of the source."""
    shards: tuple[Shard, ...]
    """In the order in which they are read."""
    epoch: int
    seed: int
    """For what is random in this part: another one in every lane and epoch."""
    lane: Lane


class Member(bytes):
    """A member's bytes, and where they begin in the shard."""

    offset: int = -1


@dataclass(frozen=True)
class Unread:
    """A member that is larger than what is read."""

    size: int
    offset: int


def own_pipeline(
    part: Part, wanted: Collection[str], every: EveryNth | None, tell: Callable[[Shard, Counter[str]], None]
) -> Iterator[RawSample]:
    """Yields the samples of a part: members with the suffixes in `wanted` as bytes, the others unread,
    grouped by key, shuffled through the buffer.

    `every` keeps some of them; `tell` hears what each shard has lost.
    """
    config = part.config
    buffer = config.data.sources[part.name].shuffle_buffer
    return iter(
        wds.DataPipeline(
            lambda: iter(part.shards),
            functools.partial(_members, wanted=wanted, most_bytes=config.data.max_member_bytes, tell=tell),
            functools.partial(wds.tariterators.group_by_keys, keys=_split, handler=_pass_over_duplicate),
            every,
            wds.shuffle(buffer, initial=buffer, rng=random.Random(part.seed))
            if config.data.shuffle
            else None,
        )
    )


def users_pipeline(
    part: Part, function: Callable[[Part], Iterable[RawSample]], every: EveryNth | None
) -> Iterator[RawSample]:
    """Yields the samples of the user's own pipeline. Raises: DataError for what it raises, and for what is no
    sample.
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
    shards: Iterable[Shard],
    *,
    wanted: Collection[str],
    most_bytes: int,
    tell: Callable[[Shard, Counter[str]], None],
) -> Iterator[dict[str, Any]]:
    """Yields what webdataset calls file samples, and its mark at the end of each shard.

    Our own reader of headers takes the members out of the tars, because it looks at a member's size before it
    reads it, knows the index's faults by their words, and reads through the storage layer, whose rules about
    URLs, retries and commands hold here, too.
    """
    for shard in shards:
        found: Counter[str] = Counter()
        file = open_shard(shard)
        if isinstance(shard, RemoteShard):
            file = SequentialReader(file, checksum=False)
        try:
            for name, offset, size in tar_members(file, found):
                key, suffix = sample_key(name)
                if (reason := refusal(name, suffix, size)) is not None:
                    found[reason] += 1
                elif allowed(suffix) and key and not key.endswith(b"/"):
                    data: Member | Unread = Unread(size, offset)
                    if suffix in wanted and size <= most_bytes:
                        data = Member(file.pread(size, offset))
                        data.offset = offset
                        if len(data) < size:
                            found[faults.TRUNCATED_SHARD] += 1
                            break
                    yield {"fname": name.decode("utf-8", "replace"), "data": data, "__url__": str(shard)}
        finally:
            file.close()
        tell(shard, found)
        yield {}


@dataclass(frozen=True)
class EveryNth:
    """Keeps samples first, first + step, ...: a webdataset stage."""

    first: int
    step: int

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return itertools.islice(samples, self.first, None, self.step)


def _split(name: str) -> tuple[str, str]:
    """Returns a member's key and suffix, as the index does."""
    key, suffix = sample_key(name.encode())
    return key.decode("utf-8", "replace"), suffix


def _pass_over_duplicate(error: Exception) -> bool:
    """Goes on after a second member of the same name, as the index does."""
    log.debug("%s", error)
    return True
