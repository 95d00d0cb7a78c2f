"""Where every sample's members lie in the shards: scanned once, kept beside each shard, held in memory as numpy columns.

About 40 bytes per pair in memory; loader processes share them with the process they were forked from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.data.shards import expand_shards
from flava_ds.data.tar_headers import tar_members

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")
DUPLICATE = "duplicate member"
"""The one fault that loses no sample: the first member of a name is kept."""
_VERSION = 1


@dataclass(frozen=True)
class ShardIndex:
    """The members of one shard, by sample. Samples stand in the order of their first member.

    Shapes:
        keys           [K]  uint8, all keys end to end
        key_ends       [n]  int64
        member_sample  [m]  int32
        member_suffix  [m]  int16, into `suffixes`
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

    def __len__(self) -> int:
        return len(self.key_ends)

    def column(self, suffixes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns offset and size of each sample's first member with one of the suffixes; offset -1 where there is none: [n], [n]."""
        offset, size = np.full(len(self), -1, dtype=np.int64), np.zeros(len(self), dtype=np.uint32)
        wanted = [self.suffixes.index(suffix) for suffix in suffixes if suffix in self.suffixes]
        members = np.flatnonzero(np.isin(self.member_suffix, wanted))[::-1]
        offset[self.member_sample[members]] = self.member_offset[members]
        size[self.member_sample[members]] = self.member_size[members]
        return offset, size


def sample_key(name: bytes) -> tuple[bytes, str]:
    """Splits a member's name into the sample's key and the suffix: both meet at the first dot of the last path component."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    return folder + slash + stem, suffix.decode("utf-8", "replace").lower()


def allowed(suffix: str) -> bool:
    """Says whether members with this suffix are indexed; everything else in a shard is never read."""
    return suffix in SUFFIXES or suffix.split(".")[-1] == "npy"


def scan_shard(path: Path) -> ShardIndex:
    """Reads a shard's headers. A damaged shard keeps the samples before the damage."""
    faults: Counter[str] = Counter()
    samples: dict[bytes, int] = {}
    suffixes: dict[str, int] = {}
    members: dict[tuple[int, int], tuple[int, int]] = {}
    for name, offset, size in tar_members(path, faults):
        key, suffix = sample_key(name)
        if not allowed(suffix) or key.endswith(b"/") or not key:
            continue
        place = samples.setdefault(key, len(samples)), suffixes.setdefault(suffix, len(suffixes))
        if place in members:
            faults[DUPLICATE] += 1
            continue
        members[place] = offset, size
    table = np.array([(*place, *where) for place, where in members.items()], dtype=np.int64).reshape(-1, 4)
    return ShardIndex(
        keys=np.frombuffer(b"".join(samples), dtype=np.uint8),
        key_ends=np.cumsum([len(key) for key in samples], dtype=np.int64),
        member_sample=table[:, 0].astype(np.int32),
        member_suffix=table[:, 1].astype(np.int16),
        member_offset=table[:, 2].copy(),
        member_size=table[:, 3].copy(),
        suffixes=tuple(suffixes),
        faults=dict(faults),
    )


def load_index(path: Path) -> ShardIndex:
    """Returns the shard's index, from its file when shard size and time still agree, else by scanning and writing that file."""
    stat = path.stat()
    stamp = [_VERSION, stat.st_size, stat.st_mtime_ns]
    for file in index_files(path):
        index = _read(file, stamp)
        if index is not None:
            return index
    index = scan_shard(path)
    for file in index_files(path):
        if _write(file, index, stamp):
            break
    return index


def index_files(path: Path) -> tuple[Path, Path]:
    """Returns where a shard's index may lie: beside the shard, or in the user's cache when that folder cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flava_ds" / "index"
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return path.with_name(path.name + ".index.npz"), cache / f"{digest}.npz"


def _read(file: Path, stamp: list[int]) -> ShardIndex | None:
    """Reads an index file; None when it is absent, stale or damaged."""
    try:
        with np.load(file, allow_pickle=False) as data:
            header = json.loads(data["header"].tobytes())
            if header["stamp"] != stamp:
                return None
            columns = {name: data[name] for name in data.files if name != "header"}
            return ShardIndex(**columns, suffixes=tuple(header["suffixes"]), faults=header["faults"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, index: ShardIndex, stamp: list[int]) -> bool:
    """Writes an index file under a temporary name and renames it, so that another rank never sees half of it."""
    header = json.dumps({"stamp": stamp, "suffixes": index.suffixes, "faults": index.faults}).encode()
    columns = {name: value for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".index-")
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.savez(stream, header=np.frombuffer(header, dtype=np.uint8), **columns)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
        return True
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        return False


class SampleTable:
    """The usable samples of all shards of a source.

    Shapes:
        first                     [shards+1]  int64, number of each shard's first sample; the last entry is the sample count
        columns[field]            ([N], [N])  byte offset int64 (-1 when absent) and size uint32 of that field's member
        keys, key_ends            [K], [N]    as in ShardIndex
    """

    def __init__(self, shards: Sequence[Path], fields: dict[str, Sequence[str]], required: dict[str, str]) -> None:
        """Indexes `shards`; `fields` maps a field to its suffixes, `required` maps a field to the fault of samples without it."""
        self.shards = list(shards)
        self.faults: Counter[str] = Counter()
        parts = [self._usable(index, fields, required) for index in load_indexes(self.shards)]
        self.first = np.cumsum([0, *(len(part[1]) for part in parts)], dtype=np.int64)
        self.keys = np.concatenate([part[0] for part in parts])
        self.key_ends = np.cumsum(np.concatenate([part[1] for part in parts]), dtype=np.int64)
        self.columns = {field: tuple(np.concatenate([part[2][field][i] for part in parts]) for i in range(2)) for field in fields}

    def __len__(self) -> int:
        return int(self.first[-1])

    def shard_of(self, sample: int) -> int:
        """Returns the number of the shard that holds a sample."""
        return int(np.searchsorted(self.first, sample, side="right")) - 1

    def key(self, sample: int) -> str:
        """Returns a sample's key."""
        start = self.key_ends[sample - 1] if sample else 0
        return self.keys[start : self.key_ends[sample]].tobytes().decode("utf-8", "replace")

    def _usable(self, index: ShardIndex, fields: dict[str, Sequence[str]], required: dict[str, str]) -> tuple:
        """Keeps the samples that have every required field, and counts the others by what they lack first."""
        self.faults.update(index.faults)
        columns = {field: index.column(suffixes) for field, suffixes in fields.items()}
        usable = np.ones(len(index), dtype=bool)
        for field, fault in required.items():
            present = columns[field][0] >= 0
            self.faults.update({fault: n} if (n := int((usable & ~present).sum())) else {})
            usable &= present
        lengths = np.diff(index.key_ends, prepend=0)
        keys = index.keys[np.repeat(usable, lengths)]
        return keys, lengths[usable], {field: (offset[usable], size[usable]) for field, (offset, size) in columns.items()}


def load_indexes(shards: Sequence[Path], every_s: float = 10.0) -> Iterator[ShardIndex]:
    """Yields every shard's index and logs progress, since the first scan of a large corpus takes minutes."""
    last = time.monotonic()
    for number, shard in enumerate(shards):
        yield load_index(shard)
        if time.monotonic() - last > every_s:
            last = time.monotonic()
            log.info("indexed %d of %d shards in '%s' (once; the index is kept beside each shard)", number + 1, len(shards), shard.parent)


def build_index(shards: str) -> None:
    """Indexes the shards that a folder, a file or a pattern stands for, and prints what they hold.

    Raises: DataError when there are none.
    """
    samples, members, damage = 0, Counter(), Counter()
    paths = expand_shards(shards)
    for index in load_indexes(paths):
        samples += len(index)
        members.update({index.suffixes[i]: int(n) for i, n in enumerate(np.bincount(index.member_suffix, minlength=len(index.suffixes)))})
        damage.update(index.faults)
    print(f"{len(paths)} shards, {samples} samples; members: {counted(members)}; damage: {counted(damage)}")


def counted(counts: dict[str, int]) -> str:
    """Writes counts as 'reason n, reason n', most frequent first; 'none' when there are none."""
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n) or "none"
