"""Folders that an interrupted conversion has left: its shards are whole, and more were to come.

`flava-ds prepare` writes a record beside each shard, and a summary of all of them at the very end.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from flava_ds.config.plain_files import loads
from flava_ds.storage.files import PipedShard, Shard, StreamedShard
from flava_ds.storage.parallel import AT_ONCE, ahead
from flava_ds.storage.small_objects import read_beside

log = logging.getLogger(__name__)

SUMMARY = "prepared.json"
ORIGIN = "prepared_from"
"""Field of our records, which those of img2dataset lack: a hash of all that determines the shards."""


def record_of(shard: Path | Shard) -> str:
    """Returns the name of the record beside a shard: 00000_stats.json of 00000.tar."""
    return f"{shard.name.removesuffix('.tar')}_stats.json"


def successes_in(record: bytes) -> object:
    """Returns how many samples a shard's record counts, ours or img2dataset's.

    Raises: ValueError, KeyError or TypeError for what is no record.
    """
    return loads(record)["successes"]


def warn_of_unfinished(shards: Iterable[StreamedShard]) -> None:
    """Warns of each folder of shards whose preparation has not come to its end; of a machine's ranks, the
    first does.

    Looks once at a folder, at the record of the first of its shards and, if that is ours, for the summary.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    first: dict[Path | str, Shard] = {}
    for shard in shards:
        if not isinstance(shard, PipedShard):
            first.setdefault(shard.parent, shard)
    for _ in ahead(_look, list(first.values()), threads=AT_ONCE, most=AT_ONCE):
        pass


@functools.cache
def _look(shard: Shard) -> None:
    """Warns if the folder of a shard is unfinished."""
    try:
        ours = ORIGIN in loads(read_beside(shard, record_of(shard)) or b"{}")
        unfinished = ours and read_beside(shard, SUMMARY) is None
    except (OSError, ValueError, TypeError):  # no record of ours, or a summary that is not for us to read
        return
    if unfinished:
        log.warning(
            "'%s': its preparation was interrupted, or still goes on (no %s beside its shards): samples are "
            "missing; run the same command again to finish it",
            *(shard.parent, SUMMARY),
        )
