"""Shard indexes: where the members of each sample are. Built once, kept next to the shard or in the cache."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config.plain_files import loads, open_regular
from flava_ds.storage import faults
from flava_ds.storage.atomic import write_whole
from flava_ds.storage.files import (
    RemoteShard,
    SequentialReader,
    Shard,
    Stamp,
    open_shard,
    stamp_of,
    user_cache,
)
from flava_ds.storage.members import allowed, refusal, sample_key
from flava_ds.storage.parallel import AT_ONCE, ahead, for_each
from flava_ds.storage.small_objects import put, read_if_there
from flava_ds.storage.tar_headers import tar_members

log = logging.getLogger(__name__)

VERSION = 4
_COLUMNS = ("keys", "key_ends", "member_sample", "member_suffix", "member_offset", "member_size")
_HEADER_BYTES = 16 * 2**10
"""More than the header of an index has."""
_WORTH_A_PROCESS = 256 * 2**20
"""Bytes of shards that take longer to index than a process takes to start."""


@dataclass(frozen=True)
class ShardIndex:
    """The members of one shard, by sample. Samples are in the order of their first member.

    Shapes:
        keys           [K]  uint8, all keys end to end
        key_ends       [n]  int64
        member_sample  [m]  int32
        member_suffix  [m]  int32, into `suffixes`
        member_offset  [m]  int64, bytes from the start of the shard
        member_size    [m]  int64, bytes
    """

    keys: np.ndarray
    key_ends: np.ndarray
    member_sample: np.ndarray
    member_suffix: np.ndarray
    member_offset: np.ndarray
    member_size: np.ndarray
    suffixes: tuple[str, ...]
    faults: dict[str, int]
    stamp: Stamp
    """The version of the shard that this index describes."""
    checksum: str | None = None
    """SHA-256 of the whole shard in hexadecimal digits; None if only the headers were read."""

    def __len__(self) -> int:
        return len(self.key_ends)

    def names(self) -> list[str]:
        """Returns every sample's key; bytes that are not UTF-8 become replacement characters."""
        keys, ends = self.keys.tobytes(), self.key_ends.tolist()
        starts = [0, *ends[:-1]]
        return [keys[start:end].decode("utf-8", "replace") for start, end in zip(starts, ends, strict=False)]

    def column(self, suffixes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns offset and size of each sample's first member with one of the suffixes: [n], [n].

        The offset is -1 where there is none.
        """
        offset, size = np.full(len(self), -1, dtype=np.int64), np.zeros(len(self), dtype=np.uint32)
        wanted = [self.suffixes.index(suffix) for suffix in suffixes if suffix in self.suffixes]
        members = np.flatnonzero(np.isin(self.member_suffix, wanted))[::-1]
        offset[self.member_sample[members]] = self.member_offset[members]
        size[self.member_sample[members]] = self.member_size[members]
        return offset, size


def scan_shard(shard: Shard, stamp: Stamp | None = None, *, checksum: bool = False) -> ShardIndex:
    """Reads the headers of a shard or, with `checksum`, all of it once.

    Keeps the samples of a damaged shard that come before the damage.

    Raises: DataError when it cannot be read.
    """
    stamp = stamp or stamp_of(shard)
    file = open_shard(shard, stamp)
    if checksum or isinstance(shard, RemoteShard):
        file = SequentialReader(file, checksum)
    found: Counter[str] = Counter()
    samples: dict[bytes, int] = {}
    suffixes: dict[str, int] = {}
    members: dict[tuple[int, int], tuple[int, int]] = {}
    try:
        for name, offset, size in tar_members(file, found):
            key, suffix = sample_key(name)
            reason = refusal(name, suffix, size)
            if reason is not None:
                found[reason] += 1
                continue
            if not allowed(suffix) or key.endswith(b"/") or not key:
                continue
            place = samples.setdefault(key, len(samples)), suffixes.setdefault(suffix, len(suffixes))
            if place in members:
                found[faults.DUPLICATE] += 1
                continue
            members[place] = offset, size
        digest = file.checksum() if isinstance(file, SequentialReader) else None
    finally:
        file.close()
    table = np.array([(*place, *where) for place, where in members.items()], dtype=np.int64).reshape(-1, 4)
    return ShardIndex(
        keys=np.frombuffer(b"".join(samples), dtype=np.uint8),
        key_ends=np.cumsum([len(key) for key in samples], dtype=np.int64),
        member_sample=table[:, 0].astype(np.int32),
        member_suffix=table[:, 1].astype(np.int32),
        member_offset=table[:, 2].copy(),
        member_size=table[:, 3].copy(),
        suffixes=tuple(suffixes),
        faults=dict(+found),
        stamp=stamp,
        checksum=digest,
    )


def load_index(shard: Shard) -> ShardIndex:
    """Returns a shard's index: from its file if that is up to date, otherwise by scanning and writing it."""
    return next(load_indexes([shard]))


def load_indexes(
    shards: Sequence[Shard],
    stamps: Sequence[Stamp] | None = None,
    *,
    checksum: bool = False,
    processes: int | None = None,
) -> Iterator[ShardIndex]:
    """Yields the index of every shard in order, building first those that are missing or lack a checksum.

    Known `stamps` save a request for each.

    Raises: DataError when a shard cannot be read.
    """
    stamps = stamps_of(shards) if stamps is None else stamps
    unwritten = index_missing(shards, stamps, checksum=checksum, processes=processes)

    def read(shard: Shard, stamp: Stamp) -> ShardIndex:
        index = unwritten.pop(shard, None) or read_index(shard, stamp, checksum)
        if index is None:  # damaged behind its header
            index = scan_shard(shard, stamp, checksum=checksum)
            _keep(shard, index)
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
    written as soon as it is done, so a second call continues where an interrupted one stopped.

    Raises: DataError when a shard cannot be read.
    """
    remote = bool(shards) and isinstance(shards[0], RemoteShard)
    known = [(shard, stamp, checksum) for shard, stamp in zip(shards, stamps, strict=True)]
    kept = for_each(_is_kept, known, workers=AT_ONCE, threads=True, label="looking for indexes")
    missing = [entry for entry, there in zip(known, kept, strict=True) if not there]
    if not missing:
        return {}
    places = sorted({str(shard.parent) for shard, *_ in missing})
    where = f"of '{places[0]}'" if len(places) == 1 else f"in {len(places)} folders"
    log.info(
        "indexing %d of %d shards %s that have no index; this happens once", len(missing), len(shards), where
    )
    workers = AT_ONCE
    if not remote:
        workers = min(
            processes or len(os.sched_getaffinity(0)),
            1 + sum(stamp[0] for _, stamp, _ in missing) // _WORTH_A_PROCESS,
        )
    results = for_each(write_index, missing, workers=workers, threads=remote, label="indexing")
    return {entry[0]: index for entry, index in zip(missing, results, strict=True) if index is not None}


def stamps_of(shards: Sequence[Shard]) -> list[Stamp]:
    """Returns the version of every shard. Raises: DataError when one does not exist."""
    arguments = [(shard,) for shard in shards]
    return for_each(stamp_of, arguments, workers=AT_ONCE, threads=True, label="looking for shards")


def _is_kept(shard: Shard, stamp: Stamp, checksum: bool) -> bool:
    """Returns whether an index of this version of a shard exists. Of a local one only the header is read; if
    the rest is damaged, that shows when it is used.
    """
    if isinstance(shard, RemoteShard):
        return read_index(shard, stamp, checksum) is not None  # which leaves a local copy
    for file in _places(shard):
        assert isinstance(file, Path)  # as the shard is
        try:
            header = _peek(file)
            if header["version"] == VERSION and tuple(header["stamp"]) == stamp:
                if header["checksum"] or not checksum:
                    return True
        except Exception:  # missing, or not written by us, as in read_index
            continue
    return False


def index_state(shard: Shard) -> tuple[int, int] | None:
    """Returns the size in bytes and the time of change in ns of the local file with a shard's index; None
    where there is none.
    """
    for file in _places(shard):
        if isinstance(file, Path):
            with suppress(OSError):
                stat = file.stat()
                return stat.st_size, stat.st_mtime_ns
    return None


def _places(shard: Shard) -> Iterator[Path | RemoteShard]:
    """Yields where a shard's index may be, in the order in which to look."""
    if isinstance(shard, RemoteShard):
        yield from reversed(index_files(shard))
        return
    yield _beside(shard)
    yield index_files(shard)[1]


def _peek(file: Path) -> dict[str, Any]:
    """Reads the header of an index, which is the first array of the file.

    Raises: OSError, and all kinds of errors for a file that `_encode` did not write.
    """
    with open(open_regular(file), "rb") as handle:
        start = handle.read(_HEADER_BYTES)
    names, extra = struct.unpack_from("<HH", start, 26)  # of the zip's first entry
    array = np.lib.format.read_array(io.BytesIO(start[30 + names + extra :]), allow_pickle=False)
    return loads(array.tobytes())


def index_files(shard: Shard) -> tuple[Path | RemoteShard, Path]:
    """Returns where a shard's index may be: next to the shard, or in the cache if that is read-only."""
    place = str(shard.resolve()) if isinstance(shard, Path) else str(shard)
    cached = f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.npz"
    return _beside(shard), user_cache() / "index" / cached


def _beside(shard: Shard) -> Path | RemoteShard:
    name = shard.name + ".index.npz"
    return shard.with_name(name) if isinstance(shard, Path) else shard.beside(name)


def read_index(shard: Shard, stamp: Stamp, checksum: bool = False) -> ShardIndex | None:
    """Returns the stored index of this version of a shard; None without one, or without a wanted checksum.

    Copies an index found next to a remote shard into the cache.
    """
    for file in _places(shard):
        try:
            data = read_if_there(file)
            index = _decode(data, stamp) if data else None
        # missing, or not written by us: zipfile and numpy raise all kinds of errors on foreign bytes
        except Exception:
            continue
        if data and index is not None and (index.checksum or not checksum):
            if isinstance(file, RemoteShard):
                _replace(index_files(shard)[1], data)
            return index
    return None


def write_index(shard: Shard, stamp: Stamp, checksum: bool) -> ShardIndex | None:
    """Scans a shard and writes its index; returns the index only if it could not be written anywhere."""
    index = scan_shard(shard, stamp, checksum=checksum)
    return None if _keep(shard, index) else index


def _keep(shard: Shard, index: ShardIndex) -> bool:
    """Writes an index; returns False when it could not be written anywhere."""
    data = _encode(index)
    beside, cache = index_files(shard)
    if isinstance(beside, RemoteShard):
        return put(beside, data) | _replace(cache, data)
    return _replace(beside, data) or _replace(cache, data)


def _encode(index: ShardIndex) -> bytes:
    """Serialises an index as an .npz without pickles."""
    fields = vars(index)
    header = {"version": VERSION} | {
        name: fields[name] for name in ("stamp", "suffixes", "faults", "checksum")
    }
    columns: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    stream = io.BytesIO()
    np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **columns)
    return stream.getvalue()


def _decode(data: bytes, stamp: Stamp) -> ShardIndex | None:
    """Parses what `_encode` wrote; None when it describes another version of the shard.

    The bytes are untrusted: they may have come with the shard, from anybody.

    Raises: ValueError for an inconsistent index, and whatever numpy and zipfile raise for foreign bytes.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        entries = arrays.zip.infolist()
        if any(entry.compress_type for entry in entries):
            raise ValueError("compressed arrays, whose size nothing bounds")
        if len(entries) != 1 + len(_COLUMNS) or {*arrays.files} != {"header", *_COLUMNS}:
            raise ValueError("other arrays than those of an index")
        header = loads(arrays["header"].tobytes())
        if header.pop("version") != VERSION or tuple(header["stamp"]) != stamp:
            return None
        columns = {name: arrays[name] for name in _COLUMNS}
    index = ShardIndex(**columns, **(header | {"stamp": stamp, "suffixes": tuple(header["suffixes"])}))
    if not _agrees_with_itself(index):
        raise ValueError("inconsistent numbers")
    return index


def _agrees_with_itself(index: ShardIndex) -> bool:
    """Returns whether every array has its type and length and all numbers are in range."""
    members = (index.member_sample, index.member_suffix, index.member_offset, index.member_size)
    dtypes = [array.dtype for array in (index.keys, index.key_ends, *members)]
    typed = dtypes == [np.uint8, np.int64, np.int32, np.int32, np.int64, np.int64]
    if (
        not typed
        or {array.shape for array in members} != {(len(index.member_size),)}
        or index.keys.ndim != 1
        or index.key_ends.ndim != 1
    ):
        return False
    ends = index.key_ends
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])[: len(index)]
    bounds = (
        (index.member_sample, len(index)),
        (index.member_suffix, len(index.suffixes)),
        (index.member_offset, index.stamp[0] + 1),
    )
    return bool(
        (ends >= starts).all()
        and (ends[-1] if len(ends) else 0) == len(index.keys)
        and all(((0 <= array) & (array < limit)).all() for array, limit in bounds)
        and ((0 <= index.member_size) & (index.member_size <= index.stamp[0] - index.member_offset)).all()
        and index.faults.keys() <= set(faults.OF_A_SHARD)
        and all(type(n) is int and 0 <= n < 2**53 for n in index.faults.values())
        and all(type(suffix) is str for suffix in index.suffixes)
    )


def _replace(file: Path, data: bytes) -> bool:
    """Writes a file atomically; returns False when that fails."""
    try:
        write_whole(file, data)
    except OSError:
        return False
    return True
