"""Where every sample's members lie in a shard: scanned once and kept in a file beside the shard, or in the
user's cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.storage import faults
from flava_ds.storage.atomic import write_whole
from flava_ds.storage.files import (
    RemoteShard,
    SequentialReader,
    Shard,
    Stamp,
    open_shard,
    put,
    read_if_there,
    stamp_of,
    user_cache,
)
from flava_ds.storage.parallel import for_each
from flava_ds.storage.tar_headers import tar_members

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")
MAX_IMAGE_BYTES, MAX_OTHER_BYTES = 256 * 2**20, 16 * 2**20
"""Largest members that are read: pictures, and captions, metadata or codes, which are parsed as a whole."""
_PICKLED = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "ten", "tenbin", "cbor", "mp"})
_PACKED = frozenset({"gz", "bz2", "xz", "zst", "zip", "tgz", "lzma"})
_VERSION = 3
_REQUESTS_AT_ONCE = 16
_WORTH_A_PROCESS = 256 * 2**20
"""Bytes of shards that take longer to index than a process takes to start."""


@dataclass(frozen=True)
class ShardIndex:
    """The members of one shard, by sample. Samples stand in the order of their first member.

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
    """The state of the shard that this describes."""
    checksum: str | None = None
    """SHA-256 of the whole shard in hexadecimal digits; None where only the headers were read."""

    def __len__(self) -> int:
        return len(self.key_ends)

    def column(self, suffixes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns offset and size of each sample's first member with one of the suffixes; offset -1 where
        there is none: [n], [n].
        """
        offset, size = np.full(len(self), -1, dtype=np.int64), np.zeros(len(self), dtype=np.uint32)
        wanted = [self.suffixes.index(suffix) for suffix in suffixes if suffix in self.suffixes]
        members = np.flatnonzero(np.isin(self.member_suffix, wanted))[::-1]
        offset[self.member_sample[members]] = self.member_offset[members]
        size[self.member_sample[members]] = self.member_size[members]
        return offset, size


def sample_key(name: bytes) -> tuple[bytes, str]:
    """Splits a member's name into the sample's key and the suffix: both meet at the first dot of the last
    path component.
    """
    folder, slash, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    return folder + slash + stem, suffix.decode("utf-8", "replace").lower()


def allowed(suffix: str) -> bool:
    """Says whether members with this suffix are indexed; everything else in a shard is never read."""
    return suffix in SUFFIXES or suffix.split(".")[-1] == "npy"


def refusal(name: bytes, suffix: str, size: int) -> str | None:
    """Returns the reason for which a member is left alone and counted; None for what is read, and for what
    nobody asks for.
    """
    last = suffix.rpartition(".")[2]
    if last in _PICKLED:
        return faults.PICKLED
    if last in _PACKED:
        return faults.PACKED
    if not allowed(suffix):
        return None
    if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name:
        return faults.UNSAFE_NAME
    return (
        faults.TOO_LARGE
        if size > (MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_OTHER_BYTES)
        else None
    )


def scan_shard(shard: Shard, stamp: Stamp | None = None, *, checksum: bool = False) -> ShardIndex:
    """Reads a shard's headers; with `checksum` all of it, once. A damaged shard keeps the samples before the
    damage.

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
        digest = file.checksum() if checksum else None
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
    """Returns the shard's index, from its file when the shard's state still agrees, else by scanning and
    writing that file.
    """
    return next(load_indexes([shard]))


def load_indexes(
    shards: Sequence[Shard], *, checksum: bool = False, processes: int | None = None
) -> Iterator[ShardIndex]:
    """Yields every shard's index in order, after indexing those that have none, or none with a checksum where
    one is wanted.

    Raises: DataError when a shard cannot be read.
    """
    unwritten, stamps = index_missing(shards, checksum=checksum, processes=processes), stamps_of(shards)
    for shard, stamp in zip(shards, stamps, strict=True):
        index = unwritten.pop(shard, None) or read_index(shard, stamp, checksum)
        yield index if index is not None else scan_shard(shard, stamp, checksum=checksum)


def index_missing(
    shards: Sequence[Shard], *, checksum: bool = False, processes: int | None = None
) -> dict[Shard, ShardIndex]:
    """Indexes the shards that have no index, and says so; returns those whose index no file could take.

    Several are indexed at once, by `processes` processes (None: one per core) or, from afar, by threads. Each
    is kept as soon as it is done, so a second call goes on where the first ended.

    Raises: DataError when a shard cannot be read.
    """
    remote = bool(shards) and isinstance(shards[0], RemoteShard)
    known = [(shard, stamp, checksum) for shard, stamp in zip(shards, stamps_of(shards), strict=True)]
    kept = for_each(
        _is_kept,
        known,
        workers=_REQUESTS_AT_ONCE if remote else 1,
        threads=True,
        label="reading indexes",
        unit="shard",
    )
    missing = [entry for entry, there in zip(known, kept, strict=True) if not there]
    if not missing:
        return {}
    log.info(
        "indexing %d of %d shards of '%s' that have no index yet; this happens once",
        len(missing),
        len(shards),
        missing[0][0].parent,
    )
    workers = _REQUESTS_AT_ONCE
    if not remote:
        workers = min(
            processes or len(os.sched_getaffinity(0)),
            1 + sum(stamp[0] for _, stamp, _ in missing) // _WORTH_A_PROCESS,
        )
    results = for_each(write_index, missing, workers=workers, threads=remote, label="indexing", unit="shard")
    return {entry[0]: index for entry, index in zip(missing, results, strict=True) if index is not None}


def stamps_of(shards: Sequence[Shard]) -> list[Stamp]:
    """Returns the state of every shard. Raises: DataError when one is not there."""
    remote = bool(shards) and isinstance(shards[0], RemoteShard)
    arguments = [(shard,) for shard in shards]
    return for_each(
        stamp_of,
        arguments,
        workers=_REQUESTS_AT_ONCE if remote else 1,
        threads=True,
        label="looking for shards",
        unit="shard",
    )


def _is_kept(shard: Shard, stamp: Stamp, checksum: bool) -> bool:
    """Says whether there is a usable index."""
    return read_index(shard, stamp, checksum) is not None


def index_files(shard: Shard) -> tuple[Path | RemoteShard, Path]:
    """Returns where a shard's index may lie: beside the shard, or in the user's cache when that folder cannot
    be written.
    """
    place = str(shard.resolve()) if isinstance(shard, Path) else str(shard)
    name = shard.name + ".index.npz"
    beside = shard.with_name(name) if isinstance(shard, Path) else shard.beside(name)
    return beside, user_cache() / "index" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.npz"


def read_index(shard: Shard, stamp: Stamp, checksum: bool = False) -> ShardIndex | None:
    """Returns the index that is kept for this state of a shard; None when there is none, or none with a
    checksum where one is wanted.

    One that lies beside a remote shard is copied to the cache.
    """
    beside, cache = index_files(shard)
    for file in (cache, beside) if isinstance(beside, RemoteShard) else (beside, cache):
        try:
            data = read_if_there(file)
            index = _decode(data, stamp) if data else None
        # absent, or not what we wrote: zipfile and numpy raise whatever such bytes lead them to
        except Exception:
            continue
        if index is not None and (index.checksum or not checksum):
            if isinstance(file, RemoteShard):
                _replace(cache, data)
            return index
    return None


def write_index(shard: Shard, stamp: Stamp, checksum: bool) -> ShardIndex | None:
    """Scans a shard and writes its index; returns it only where no place could be written."""
    index = scan_shard(shard, stamp, checksum=checksum)
    data = _encode(index)
    beside, cache = index_files(shard)
    if isinstance(beside, RemoteShard):
        return None if put(beside, data) | _replace(cache, data) else index
    return None if _replace(beside, data) or _replace(cache, data) else index


def _encode(index: ShardIndex) -> bytes:
    """Writes an index as an .npz without pickles."""
    fields = vars(index)
    header = {"version": _VERSION} | {
        name: fields[name] for name in ("stamp", "suffixes", "faults", "checksum")
    }
    columns = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    stream = io.BytesIO()
    np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **columns)
    return stream.getvalue()


def _decode(data: bytes, stamp: Stamp) -> ShardIndex | None:
    """Reads what _encode wrote; None when it describes another state of the shard. It may have come with the
    shard, from anybody.

    Raises: whatever bytes that are none of ours lead to, ValueError for an index that contradicts itself.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if any(entry.compress_type for entry in arrays.zip.infolist()):
            raise ValueError("packed arrays, of a size that nothing bounds")
        header = json.loads(arrays["header"].tobytes())
        if header.pop("version") != _VERSION or tuple(header["stamp"]) != stamp:
            return None
        columns = {name: arrays[name] for name in arrays.files if name != "header"}
    index = ShardIndex(**columns, **(header | {"stamp": stamp, "suffixes": tuple(header["suffixes"])}))
    if not _agrees_with_itself(index):
        raise ValueError("numbers that point nowhere")
    return index


def _agrees_with_itself(index: ShardIndex) -> bool:
    """Says whether every array is of its type and length, and every number in it points to something."""
    members = (index.member_sample, index.member_suffix, index.member_offset, index.member_size)
    typed = [array.dtype for array in (index.keys, index.key_ends, *members)] == [
        np.uint8,
        np.int64,
        np.int32,
        np.int32,
        np.int64,
        np.int64,
    ]
    if (
        not typed
        or {array.shape for array in members} != {(len(index.member_size),)}
        or index.keys.ndim != 1
        or index.key_ends.ndim != 1
    ):
        return False
    ends, starts = (
        index.key_ends,
        np.concatenate([np.zeros(1, dtype=np.int64), index.key_ends[:-1]])[: len(index)],
    )
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
        and all(isinstance(n, int) for n in index.faults.values())
    )


def _replace(file: Path, data: bytes) -> bool:
    """Writes a file, of which another process never sees half; False when that fails."""
    try:
        write_whole(file, data)
    except OSError:
        return False
    return True


def counted(counts: dict[str, int]) -> str:
    """Writes counts as 'reason n, reason n', most frequent first; 'none' when there are none."""
    return (
        ", ".join(
            f"{name} {n}" for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n
        )
        or "none"
    )
