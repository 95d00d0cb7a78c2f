"""The indexes of shards: read where they are kept, built once where they are missing."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.storage.files import CACHE_VARIABLE, RemoteShard, Shard, Stamp, stamp_of
from flava_ds.storage.index_files import is_kept, keep_index, read_index
from flava_ds.storage.parallel import AT_ONCE, ahead, for_each
from flava_ds.storage.shard_index import ShardIndex, scan_shard

log = logging.getLogger(__name__)

_WORTH_A_PROCESS = 256 * 2**20
"""Bytes of shards that take longer to index than a process takes to start."""


def load_index(shard: Shard) -> ShardIndex:
    """Returns a shard's index: from its file if that is up to date, otherwise by scanning and writing it."""
    return next(load_indexes([shard]))


def load_indexes(
    shards: Sequence[Shard],
    stamps: Sequence[Stamp] | None = None,
    *,
    checksum: bool = False,
    processes: int | None = None,
    unwritten: dict[Shard, ShardIndex] | None = None,
) -> Iterator[ShardIndex]:
    """Yields the index of every shard in order, building first those that are missing or lack a checksum.

    Known `stamps` save a request for each, and what `index_missing` has returned another look.

    Raises: DataError when a shard cannot be read.
    """
    stamps = stamps_of(shards) if stamps is None else stamps
    if unwritten is None:
        unwritten = index_missing(shards, stamps, checksum=checksum, processes=processes)

    def read(shard: Shard, stamp: Stamp) -> ShardIndex:
        index = unwritten.pop(shard, None) or read_index(shard, stamp, checksum)
        if index is None:  # damaged behind its header
            index = scan_shard(shard, stamp, checksum=checksum)
            keep_index(shard, index)
        return index

    pairs = list(zip(shards, stamps, strict=True))
    yield from ahead(lambda pair: read(*pair), pairs, threads=AT_ONCE, most=AT_ONCE)


def index_missing(
    shards: Sequence[Shard],
    stamps: Sequence[Stamp],
    *,
    checksum: bool = False,
    processes: int | None = None,
) -> dict[Shard, ShardIndex]:
    """Indexes the shards that have no index; returns the indexes that could not be written to any file.

    Works in parallel: `processes` processes (None: one per core), or threads for remote shards. Each index is
    written as soon as it is done, so a second call continues where an interrupted one stopped. Machines that
    begin together begin at different shards, and leave each other out what is done.

    Raises: DataError when a shard cannot be read.
    """
    remote = bool(shards) and isinstance(shards[0], RemoteShard)
    known = [(shard, stamp, checksum) for shard, stamp in zip(shards, stamps, strict=True)]
    kept = for_each(is_kept, known, workers=AT_ONCE, threads=True, label="looking for indexes")
    missing = [entry for entry, there in zip(known, kept, strict=True) if not there]
    if not missing:
        return {}
    turn = random.Random(f"{socket.gethostname()} {os.getpid()}").randrange(len(missing))
    missing = missing[turn:] + missing[:turn]
    places = sorted({str(shard.parent) for shard, *_ in missing})
    where = f"of '{places[0]}'" if len(places) == 1 else f"in {len(places)} folders"
    log.info("indexing %d of %d shards %s that have no index", len(missing), len(shards), where)
    workers = AT_ONCE
    if not remote:
        workers = min(
            processes or len(os.sched_getaffinity(0)),
            1 + sum(stamp[0] for _, stamp, _ in missing) // _WORTH_A_PROCESS,
        )
    results = for_each(write_index, missing, workers=workers, threads=remote, label="indexing")
    unwritten = {entry[0]: index for entry, index in zip(missing, results, strict=True) if index is not None}
    if unwritten:
        log.warning(
            "%d of %d indexes can be kept nowhere, so each start makes them anew; let %s name a folder that "
            "can be written",
            len(unwritten),
            len(shards),
            CACHE_VARIABLE,
        )
    return unwritten


def stamps_of(shards: Sequence[Shard]) -> list[Stamp]:
    """Returns the version of every shard. Raises: DataError when one does not exist."""
    arguments = [(shard,) for shard in shards]
    return for_each(stamp_of, arguments, workers=AT_ONCE, threads=True, label="looking for shards")


def write_index(shard: Shard, stamp: Stamp, checksum: bool) -> ShardIndex | None:
    """Scans a shard and writes its index, unless another process has meanwhile; returns the index only if it
    could not be written anywhere.
    """
    if isinstance(shard, Path) and is_kept(shard, stamp, checksum):
        return None
    index = scan_shard(shard, stamp, checksum=checksum)
    return None if keep_index(shard, index) else index
