"""What a shard holds: where the members of each sample are, read from its headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from flava_ds.storage import faults
from flava_ds.storage.files import RemoteShard, SequentialReader, Shard, Stamp, open_shard, stamp_of
from flava_ds.storage.members import sample_members


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

        The offset is -1 where there is none. The size of a member of 4 GiB or more is 4 GiB less one byte.
        """
        offset, size = np.full(len(self), -1, dtype=np.int64), np.zeros(len(self), dtype=np.uint32)
        wanted = [self.suffixes.index(suffix) for suffix in suffixes if suffix in self.suffixes]
        members = np.flatnonzero(np.isin(self.member_suffix, wanted))[::-1]
        offset[self.member_sample[members]] = self.member_offset[members]
        size[self.member_sample[members]] = self.member_size[members].clip(max=np.iinfo(size.dtype).max)
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
    with closing(file):
        for _, key, suffix, offset, size in sample_members(file, found):
            place = samples.setdefault(key, len(samples)), suffixes.setdefault(suffix, len(suffixes))
            if place in members:
                found[faults.DUPLICATE] += 1
                continue
            members[place] = offset, size
        digest = file.checksum() if isinstance(file, SequentialReader) else None
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
