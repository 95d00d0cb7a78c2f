"""The usable samples of all shards of a source, held in memory as numpy columns.

A pair takes about 40 bytes. Dataloader workers are forked and share the columns with their parent.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from flava_ds.storage.files import Shard, Stamp
from flava_ds.storage.index import ShardIndex, load_indexes


class SampleTable:
    """The usable samples of all shards of a source.

    Shapes:
        first                     [shards+1]  int64, number of each shard's first sample; the last entry is
                                              the sample count
        columns[field]            ([N], [N])  byte offset int64 (-1 when absent) and size uint32 of that
                                              field's member
        keys, key_ends            [K], [N]    as in ShardIndex
    """

    def __init__(
        self, shards: Sequence[Shard], fields: Mapping[str, Sequence[str]], required: Mapping[str, str]
    ) -> None:
        """Indexes `shards`.

        `fields` maps a field to its suffixes, `required` a field to the fault of samples without it.
        """
        self.shards = list(shards)
        self.faults: Counter[str] = Counter()
        self.stamps: list[Stamp] = []
        self._layouts: list[str] = []
        self._checksums: list[str | None] = []
        parts = [self._usable(index, fields, required) for index in load_indexes(self.shards)]
        self.first = np.cumsum([0, *(len(part[1]) for part in parts)], dtype=np.int64)
        self.keys = np.concatenate([part[0] for part in parts])
        self.key_ends = np.cumsum(np.concatenate([part[1] for part in parts]), dtype=np.int64)
        self.columns = {
            field: tuple(np.concatenate([part[2][field][i] for part in parts]) for i in range(2))
            for field in fields
        }

    def __len__(self) -> int:
        return int(self.first[-1])

    def shard_of(self, sample: int) -> int:
        """Returns the number of the shard that holds a sample."""
        return int(np.searchsorted(self.first, sample, side="right")) - 1

    def key(self, sample: int) -> str:
        """Returns a sample's key."""
        start = self.key_ends[sample - 1] if sample else 0
        return self.keys[start : self.key_ends[sample]].tobytes().decode("utf-8", "replace")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hashes the keys, shard by shard: if equal, the same sample numbers mean the same samples."""
        digest = hashlib.sha256(self.first.tobytes())
        digest.update(self.key_ends.tobytes())
        digest.update(self.keys.tobytes())
        return digest.hexdigest()[:16]

    @property
    def layout(self) -> str:
        """Hashes where every member lies and how long it is: no picture or caption of another length goes
        unnoticed.
        """
        return hashlib.sha256("".join(self._layouts).encode()).hexdigest()[:16]

    @property
    def contents(self) -> str | None:
        """Hashes the SHA-256 of all shards as their indexes have them; None where one has none."""
        known = [checksum for checksum in self._checksums if checksum is not None]
        if len(known) < len(self.shards):
            return None
        return hashlib.sha256("".join(known).encode()).hexdigest()[:16]

    def _usable(
        self, index: ShardIndex, fields: Mapping[str, Sequence[str]], required: Mapping[str, str]
    ) -> tuple:
        """Keeps the samples with every required field; counts the others by the first field they lack."""
        self.faults.update(index.faults)
        self.stamps.append(index.stamp)
        self._checksums.append(index.checksum)
        members = (index.member_sample, index.member_suffix, index.member_offset, index.member_size)
        parts = [repr(index.suffixes).encode(), *(part.tobytes() for part in members)]
        self._layouts.append(hashlib.sha256(b"".join(parts)).hexdigest())
        columns = {field: index.column(suffixes) for field, suffixes in fields.items()}
        usable = np.ones(len(index), dtype=bool)
        for field, fault in required.items():
            present = columns[field][0] >= 0
            self.faults.update({fault: n} if (n := int((usable & ~present).sum())) else {})
            usable &= present
        lengths = np.diff(index.key_ends, prepend=0)
        keys = index.keys[np.repeat(usable, lengths)]
        return (
            keys,
            lengths[usable],
            {field: (offset[usable], size[usable]) for field, (offset, size) in columns.items()},
        )
