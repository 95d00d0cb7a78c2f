"""The files that keep shard indexes: next to the shard, or in the cache. They may have come from anybody."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config.plain_files import loads, open_regular, read_small
from flava_ds.storage import faults
from flava_ds.storage.atomic import write_whole
from flava_ds.storage.files import RemoteShard, Shard, Stamp, user_cache, without_links
from flava_ds.storage.parallel import AT_ONCE, for_each
from flava_ds.storage.shard_index import ShardIndex
from flava_ds.storage.small_objects import put, read_if_there

VERSION = 4
_COLUMNS = ("keys", "key_ends", "member_sample", "member_suffix", "member_offset", "member_size")
_HEADER_BYTES = 16 * 2**10
"""More than the header of an index has."""
_SHA256 = re.compile("[0-9a-f]{64}")

State = tuple[int, int] | None
"""Size in bytes and time of change in ns of a file; None where there is none."""


def index_files(shard: Shard) -> tuple[Path | RemoteShard, Path]:
    """Returns where a shard's index may be: next to the shard, or in the cache if that is read-only."""
    return _beside(shard), _cached(without_links(shard) if isinstance(shard, Path) else str(shard))


def _cached(place: str) -> Path:
    """Returns the index in the cache of the shard at a place."""
    return _cache() / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.npz"


def _cache() -> Path:
    return user_cache() / "index"


def is_kept(shard: Shard, stamp: Stamp, checksum: bool) -> bool:
    """Returns whether an index of this version of a shard exists. Of a local one only the header is read; if
    the rest is damaged, that shows when it is used.
    """
    if isinstance(shard, RemoteShard):
        return read_index(shard, stamp, checksum) is not None  # which leaves a local copy
    return kept_at(shard, stamp, checksum) is not None


def kept_at(shard: Path, stamp: Stamp, checksum: bool) -> Path | None:
    """Returns the file that keeps the index of this version of a local shard, by its header; None without."""
    for file in _places(shard):
        assert isinstance(file, Path)  # as the shard is
        try:
            header = _peek(file)
            if header["version"] == VERSION and tuple(header["stamp"]) == stamp:
                if header["checksum"] or not checksum:
                    return file
        except Exception:  # missing, or not written by us, as in read_index
            continue
    return None


def index_states(shards: Sequence[Shard]) -> list[list[State]]:
    """Returns, for every shard, the state of each local file that may be its index: which of them is up to
    date is not known without opening them.
    """
    try:
        cached = frozenset(os.listdir(_cache()))  # one look, instead of one for each shard
    except OSError:
        cached = frozenset()
    states = partial(_states, cached=cached, folder_of=functools.cache(os.path.realpath))
    arguments = [(shard,) for shard in shards]
    found: list[list[State]] = for_each(
        states, arguments, workers=AT_ONCE, threads=True, label="looking for indexes"
    )
    return found


def _states(shard: Shard, cached: frozenset[str], folder_of: Callable[[str], str]) -> list[State]:
    """Returns the states of a shard's index files, given the names of those in the cache."""
    beside = _beside(shard)
    states = [_state(beside)] if isinstance(beside, Path) else []
    if not cached:
        return states
    place = without_links(shard, folder_of) if isinstance(shard, Path) else str(shard)
    if (own := _cached(place)).name in cached:
        states.append(_state(own))
    return states


def _state(file: Path) -> State:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


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


def keep_index(shard: Shard, index: ShardIndex) -> bool:
    """Writes an index; returns False when it could not be written anywhere."""
    data = _encode(index)
    beside, cache = index_files(shard)
    if isinstance(beside, RemoteShard):
        return put(beside, data) | _replace(cache, data)
    return _replace(beside, data) or _replace(cache, data)


def _places(shard: Shard) -> Iterator[Path | RemoteShard]:
    """Yields where a shard's index may be, in the order in which to look."""
    if isinstance(shard, RemoteShard):
        yield from reversed(index_files(shard))
        return
    yield _beside(shard)
    yield index_files(shard)[1]


def _beside(shard: Shard) -> Path | RemoteShard:
    name = shard.name + ".index.npz"
    return shard.with_name(name) if isinstance(shard, Path) else shard.beside(name)


def _peek(file: Path) -> dict[str, Any]:
    """Reads the header of an index, which is the first array of the file.

    Raises: OSError, and all kinds of errors for a file that `_encode` did not write.
    """
    with open(open_regular(file), "rb") as handle:
        start = handle.read(_HEADER_BYTES)
    names, extra = struct.unpack_from("<HH", start, 26)  # of the zip's first entry
    array = np.lib.format.read_array(io.BytesIO(start[30 + names + extra :]), allow_pickle=False)
    return loads(array.tobytes())


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
        and (index.checksum is None or _SHA256.fullmatch(index.checksum) is not None)
        and index.faults.keys() <= set(faults.OF_A_SHARD)
        and all(type(n) is int and 0 <= n < 2**53 for n in index.faults.values())
        and all(type(suffix) is str for suffix in index.suffixes)
    )


def _replace(file: Path, data: bytes) -> bool:
    """Writes a file atomically, unless it has these bytes already: its time of change names tables. Returns
    False when that fails.
    """
    try:
        if file.stat().st_size == len(data) and read_small(file) == data:
            return True
    except OSError:  # not there, or no regular file
        pass
    try:
        write_whole(file, data)
    except OSError:
        return False
    return True
