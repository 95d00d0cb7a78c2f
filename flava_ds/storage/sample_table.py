"""The usable samples of all shards of a source: numpy columns that a process holds, or that all of them map.

A pair takes about 40 bytes: 3 GB for 70 million, 60 GB for 1.4 billion. Loader processes are forked and share
the columns with their rank. Ranks of a machine share them where the table is a file (table_files.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flava_ds.errors import DataError
from flava_ds.processes import sign_of_life
from flava_ds.storage import faults, table_files
from flava_ds.storage.files import Shard, Stamp
from flava_ds.storage.index import index_missing, load_indexes, stamps_of
from flava_ds.storage.index_files import VERSION, index_states
from flava_ds.storage.shard_index import ShardIndex
from flava_ds.storage.table_files import Arrays

log = logging.getLogger(__name__)

STORED_FROM = 256
"""Shards from which on a table is stored: the indexes of fewer are read in a second or two."""
_VERSION = 3
_AT_A_TIME = 2**17
"""Keys that are hashed at a time."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Suffixes = Mapping[str, Sequence[str]]


class Damaged(NamedTuple):
    """A shard whose rest is unread, as its index says."""

    shard: int
    """Its number."""
    samples: int
    """Those that the index has, usable or not."""
    faults: dict[str, int]


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
        self,
        shards: Sequence[Shard],
        fields: Suffixes,
        required: Mapping[str, str],
        folder: Path | None = None,
    ) -> None:
        """Maps the stored table of `shards` if there is one; otherwise indexes them and holds their table.

        `fields` maps a field to its suffixes, `required` a field to the fault of samples without it. With the
        `folder` that prepare_table has returned on this machine, no shard and no index is looked at.

        Raises: DataError when a shard cannot be read, or the table is of more or fewer shards.
        """
        self.shards = list(shards)
        stored = table_files.load(folder) if folder is not None else None
        arrays, said = stored or _found_or_built(self.shards, fields, required)
        self.stamps: list[Stamp] = [(size, version) for size, version in said["stamps"]]
        if len(self.stamps) != len(self.shards):  # of a folder, to which somebody writes
            raise DataError(
                f"the shards beside '{self.shards[0]}' are {len(self.shards)}, and were {len(self.stamps)} a "
                "moment ago: leave them alone and start again"
            )
        self.keys, self.key_ends = arrays["keys"], arrays["key_ends"]
        self.first = np.concatenate([np.zeros(1, dtype=np.int64), arrays["shard_ends"]])
        self.columns = {field: (arrays[f"{field}.offset"], arrays[f"{field}.size"]) for field in fields}
        self.faults: Counter[str] = Counter(said["faults"])
        self.damaged = [Damaged(*found) for found in said["damaged"]]
        self.fingerprint: str = said["fingerprint"]
        """Hash of the keys, shard by shard: if equal, the same sample numbers mean the same samples."""
        self.layout: str = said["layout"]
        """Hash of where every member lies and how long it is: no picture or caption of another length goes
        unnoticed.
        """
        self.contents: str | None = said["contents"]
        """Hash of the SHA-256 of all shards as their indexes have them; None where one has none."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def shard_of(self, sample: int) -> int:
        """Returns the number of the shard that holds a sample."""
        return int(np.searchsorted(self.first, sample, side="right")) - 1

    def key(self, sample: int) -> str:
        """Returns a sample's key."""
        start = self.key_ends[sample - 1] if sample else 0
        return self.keys[start : self.key_ends[sample]].tobytes().decode("utf-8", "replace")

    def having(self, keys: Collection[str], most: int) -> Iterator[int]:
        """Yields the numbers of those of the first `most` samples that have one of these keys, in order.

        Keys are compared by hashes of many at a time, so that tens of millions take seconds. One with U+FFFD
        may stand for letters that are not UTF-8: all keys with letters outside of ASCII are compared to it.
        """
        replaced = any("\ufffd" in key for key in keys)
        wanted: dict[int, list[bytes]] = {}
        for key in keys:
            encoded = key.encode("utf-8", "surrogateescape")
            wanted.setdefault(len(encoded), []).append(encoded)
        hashed = {
            length: np.sort(_hashed(np.frombuffer(b"".join(own), dtype=np.uint8).reshape(-1, length)))
            for length, own in wanted.items()
        }
        end = min(most, len(self))
        for first in range(0, end, _AT_A_TIME):
            ends = self.key_ends[first : min(first + _AT_A_TIME, end)]
            start = int(self.key_ends[first - 1]) if first else 0
            lengths = np.diff(ends, prepend=start)
            text, starts = self.keys[start : int(ends[-1])], ends - lengths - start
            near = [np.empty(0, dtype=np.int64)]
            for length, known in hashed.items():
                rows = np.flatnonzero(lengths == length)
                found = _hashed(text[starts[rows, None] + np.arange(length)])
                places = np.minimum(np.searchsorted(known, found), len(known) - 1)
                near.append(rows[known[places] == found])
            if replaced:
                near.append(np.searchsorted(ends - start, np.flatnonzero(text > 0x7F), side="right"))
            sign_of_life()
            likely = (first + np.unique(np.concatenate(near))).tolist()
            yield from (sample for sample in likely if self.key(sample) in keys)


def _hashed(keys: np.ndarray) -> np.ndarray:
    """Hashes keys of one length: [n length] uint8 -> [n] uint64."""
    found = np.zeros(len(keys), dtype=np.uint64)
    for letters in keys.T:
        found = found * _FACTOR + letters
    return found


def _found_or_built(
    shards: Sequence[Shard], fields: Suffixes, required: Mapping[str, str]
) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays of a table and what is said of it: mapped if it is stored, otherwise built."""
    stamps = stamps_of(shards)
    large = len(shards) >= STORED_FROM
    if large and (stored := table_files.load(_folder(shards, stamps, fields, required))) is not None:
        return stored
    builder = _Builder(shards, stamps, fields, required)
    parts = list(builder.parts())
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return arrays, builder.said(arrays)


def prepare_table(shards: Sequence[Shard], fields: Suffixes, required: Mapping[str, str]) -> Path | None:
    """Indexes the shards that have no index and, where there are many shards, stores their table; returns its
    folder, or None where none is stored.

    Raises: DataError when a shard cannot be read.
    """
    stamps = stamps_of(shards)
    if len(shards) < STORED_FROM:
        index_missing(shards, stamps)
        return None
    place = partial(_folder, shards, stamps, fields, required)  # which depends on the indexes of that moment
    if table_files.load(folder := place()) is not None:
        table_files.used(folder)
        return folder
    unwritten = index_missing(shards, stamps)
    try:
        with table_files.alone(folder):
            folder = place()
            if table_files.load(folder) is None:  # else another process has stored it meanwhile
                builder = _Builder(shards, stamps, fields, required, unwritten)
                folder = table_files.store(folder, builder.parts(), builder.said, place)
    except OSError as error:
        log.warning(
            "the table of %d shards cannot be kept in '%s' (%s), so every rank reads their indexes and holds "
            "its own",
            len(shards),
            folder.parent,
            error,
        )
        return None
    log.info("the table of %d shards is kept in '%s', for all ranks and later starts", len(shards), folder)
    return folder


class _Builder:
    """Makes a table shard by shard, and says at the end what holds for all of it."""

    def __init__(
        self,
        shards: Sequence[Shard],
        stamps: Sequence[Stamp],
        fields: Suffixes,
        required: Mapping[str, str],
        unwritten: dict[Shard, ShardIndex] | None = None,
    ) -> None:
        """Takes what `index_missing` has returned, if it was called already."""
        self._shards, self._stamps, self._fields, self._required = shards, stamps, fields, required
        self._unwritten = unwritten
        self._faults: Counter[str] = Counter()
        self._damaged: list[Damaged] = []
        self._layouts: list[str] = []
        self._checksums: list[str | None] = []

    def parts(self) -> Iterator[Arrays]:
        """Yields the arrays of every shard, with ends counted from the start of the table."""
        samples = length = 0
        indexes = load_indexes(self._shards, self._stamps, unwritten=self._unwritten)
        for shard, index in enumerate(indexes):
            sign_of_life()
            self._faults.update(index.faults)
            if ended := {reason: n for reason, n in index.faults.items() if reason in faults.ENDING}:
                self._damaged.append(Damaged(shard, len(index), ended))
            self._checksums.append(index.checksum)
            self._layouts.append(_layout(index))
            columns, usable = self._usable(index)
            lengths = np.diff(index.key_ends, prepend=0)
            ends = length + np.cumsum(lengths[usable], dtype=np.int64)
            samples += len(ends)
            length = int(ends[-1]) if len(ends) else length
            yield {
                "shard_ends": np.array([samples], dtype=np.int64),
                "keys": index.keys[np.repeat(usable, lengths)],
                "key_ends": ends,
                **{name: column[usable] for name, column in columns.items()},
            }

    def said(self, arrays: Arrays) -> dict[str, Any]:
        """Returns what the whole table says beside its arrays."""
        digest = hashlib.sha256(np.zeros(1, dtype=np.int64).tobytes())
        for name in ("shard_ends", "key_ends", "keys"):
            digest.update(arrays[name].data)
        known = [checksum for checksum in self._checksums if checksum is not None]
        return {
            "faults": dict(self._faults),
            "damaged": self._damaged,
            "fingerprint": digest.hexdigest()[:16],
            "layout": short_hash("".join(self._layouts)),
            "contents": short_hash("".join(known)) if len(known) == len(self._shards) else None,
            "stamps": list(self._stamps),
        }

    def _usable(self, index: ShardIndex) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns the columns of all samples, and which have every required field; counts the others by the
        first field they lack.
        """
        columns: dict[str, np.ndarray] = {}
        for field, suffixes in self._fields.items():
            columns[f"{field}.offset"], columns[f"{field}.size"] = index.column(suffixes)
        usable = np.ones(len(index), dtype=bool)
        for field, fault in self._required.items():
            present = columns[f"{field}.offset"] >= 0
            self._faults.update({fault: n} if (n := int((usable & ~present).sum())) else {})
            usable &= present
        return columns, usable


def _folder(
    shards: Sequence[Shard], stamps: Sequence[Stamp], fields: Suffixes, required: Mapping[str, str]
) -> Path:
    """Returns where the table of these versions of the shards and of their indexes is stored."""
    names = [str(shard.absolute() if isinstance(shard, Path) else shard) for shard in shards]
    suffixes = {field: list(own) for field, own in fields.items()}
    of = [_VERSION, VERSION, names, suffixes, dict(required)]
    versions = [list(stamps), index_states(shards)]
    return table_files.folder_of(*(short_hash(json.dumps(what)) for what in (of, versions)))


def _layout(index: ShardIndex) -> str:
    """Hashes where the members of a shard lie and how long they are."""
    members = (index.member_sample, index.member_suffix, index.member_offset, index.member_size)
    parts = [repr(index.suffixes).encode(), *(part.tobytes() for part in members)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def short_hash(text: str) -> str:
    """Returns 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
