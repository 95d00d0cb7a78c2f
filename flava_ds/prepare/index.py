"""`flava-ds prepare index`: writes an index with a checksum for every shard, and checks the counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flava_ds.errors import DataError, number_of
from flava_ds.plain_text import escaped
from flava_ds.prepare.img2dataset import compare
from flava_ds.storage import faults
from flava_ds.storage.faults import counted
from flava_ds.storage.files import RemoteShard, Shard, Stamp
from flava_ds.storage.index import load_indexes, stamps_of
from flava_ds.storage.index_files import kept_at, read_index
from flava_ds.storage.parallel import for_each
from flava_ds.storage.shard_index import ShardIndex, scan_shard
from flava_ds.storage.shards import list_shards
from flava_ds.storage.unfinished import warn_of_unfinished

_NAMED = 20


def build_indexes(
    shards: Sequence[str], *, checksum: bool = True, verify: bool = False, processes: int | None = None
) -> None:
    """Indexes all `shards` in parallel and prints the contents of each place, damage and differences from
    img2dataset's counts.

    Without `checksum`, reads only the headers. With `verify`, reads shards that have a checksum again and
    compares them with it.

    Raises: DataError when there are no shards, a shard cannot be read, or it differs from its checksum.
    """
    by_place = {entry: list_shards(entry) for entry in shards}
    paths = sorted(set().union(*by_place.values()))
    warn_of_unfinished(paths)
    if len({type(path) is RemoteShard for path in paths}) > 1:
        raise DataError("local and remote shards in one call; index them separately")
    verified = f"; {_verify(paths, processes)} agree with their checksum" if verify else ""
    held = {
        path: _held(path, index, checksum)
        for path, index in zip(
            paths, load_indexes(paths, checksum=checksum, processes=processes), strict=True
        )
    }
    alone = verified if len(by_place) == 1 else ""
    for place, own in by_place.items():
        print(f"{escaped(place)}: {_summary([held[path] for path in own])}{alone}")
    if len(by_place) > 1:
        print(f"all, each shard once: {_summary(list(held.values()))}{verified}")
    _say_elsewhere(held)
    _name_some(
        [f"{path}: {counted(lost)}" for path, own in held.items() if (lost := faults.lossy(own.faults))]
    )
    reports = [own.differences for own in held.values() if own.differences is not None]
    differences = [line for found in reports for line in found]
    if reports:
        print(
            f"{len(reports)} have a report of img2dataset; {len(differences) or 'no'} "
            f"difference{'' if len(differences) == 1 else 's'} from it"
        )
    _name_some(differences)


class _Held(NamedTuple):
    """What an index says of its shard."""

    samples: int
    members: Counter[str]
    faults: dict[str, int]
    differences: list[str] | None
    """From img2dataset's report; None where there is none."""
    kept: Path | None
    """The file of a local shard's index; None where it cannot be written, and for a remote shard."""


def _held(path: Shard, index: ShardIndex, checksum: bool) -> _Held:
    """Counts what a shard holds."""
    counts = np.bincount(index.member_suffix, minlength=len(index.suffixes)).tolist()
    members = Counter(dict(zip(index.suffixes, counts, strict=True)))
    kept = kept_at(path, index.stamp, checksum) if isinstance(path, Path) else None
    return _Held(len(index), members, dict(index.faults), compare(path, index), kept)


def _say_elsewhere(held: Mapping[Shard, _Held]) -> None:
    """Says which indexes of local shards are in the cache, as their folder cannot be written."""
    local = {path: own.kept for path, own in held.items() if isinstance(path, Path)}
    cached = [kept for path, kept in local.items() if kept is not None and kept.parent != path.parent]
    if cached:
        print(
            f"{len(cached)} of {len(local)} indexes are kept in '{cached[0].parent}', as the folder of their "
            "shards cannot be written"
        )


def _summary(shards: Sequence[_Held]) -> str:
    """Adds shards up."""
    members, damage = Counter[str](), Counter[str]()
    for own in shards:
        members.update(own.members)
        damage.update(own.faults)
    samples = number_of(sum(own.samples for own in shards), "sample")
    held = f"{number_of(len(shards), 'shard')}, {samples}"
    return f"{held}; members: {counted(members)}; damage: {counted(damage)}"


def _name_some(lines: Sequence[str]) -> None:
    """Prints the first lines, and the number of the others."""
    for line in lines[:_NAMED]:
        print(f"  {line}")
    if len(lines) > _NAMED:
        print(f"  and {len(lines) - _NAMED} more")


def _verify(paths: Sequence[Shard], processes: int | None) -> int:
    """Re-reads shards with a checksum; returns the number that agree. Raises: DataError if some differ."""
    arguments = list(zip(paths, stamps_of(paths), strict=True))
    workers = processes or len(os.sched_getaffinity(0))
    # threads suffice, because hashing releases the GIL
    results = for_each(_agrees, arguments, workers=workers, threads=True, label="verifying")
    changed = [str(path) for path, result in zip(paths, results, strict=True) if result is False]
    if changed:
        raise DataError(
            f"{number_of(len(changed), 'shard')} of another checksum, though of the same size and time: "
            f"{', '.join(changed[:_NAMED])}{' ...' * (len(changed) > _NAMED)}; restore them, or delete their "
            ".index.npz to accept them as they are"
        )
    return results.count(True)


def _agrees(path: Shard, stamp: Stamp) -> bool | None:
    """Compares a shard with its checksum; None if it has none."""
    index = read_index(path, stamp, True)
    return None if index is None else scan_shard(path, stamp, checksum=True).checksum == index.checksum
