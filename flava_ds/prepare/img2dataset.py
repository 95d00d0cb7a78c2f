"""Compares a shard, 00000.tar, with img2dataset's reports about it: 00000_stats.json and 00000.parquet."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from flava_ds.data.samples import printable
from flava_ds.storage.files import Shard
from flava_ds.storage.shard_index import ShardIndex
from flava_ds.storage.small_objects import read_beside
from flava_ds.storage.unfinished import record_of, successes_in

log = logging.getLogger(__name__)

_KEYS_NAMED = 3
REASONS = 8
"""Reasons that are told, at most."""


def compare(shard: Shard, index: ShardIndex) -> list[str] | None:
    """Returns the differences between a shard and its reports, in words; None when there is no report.

    The .json has the number of successful downloads. The .parquet lists them and is only read if pyarrow is
    installed.
    """
    stats = read_beside(shard, record_of(shard))
    table = read_beside(shard, f"{shard.name.removesuffix('.tar')}.parquet")
    if stats is None and table is None:
        return None
    differences = []
    if stats is not None:
        differences += _compare_count(shard, index, stats)
    if table is not None:
        differences += _compare_keys(shard, index, table)
    return differences


def left_out(shards: Iterable[Shard]) -> dict[str, int]:
    """Counts what yielded no sample when the shards were written, by the commonest reasons, as far as reports
    beside them say.
    """
    found = Counter[str]()
    for shard in shards:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            statuses = json.loads(read_beside(shard, record_of(shard)) or b"{}")["status_dict"]
            found.update({printable(r): n for r, n in statuses.items() if type(n) is int and n > 0})
    del found["success"]
    told = dict(found.most_common(REASONS))
    rest = found.total() - sum(told.values())
    return told | ({"other reasons": rest} if rest else {})


def _compare_count(shard: Shard, index: ShardIndex, stats: bytes) -> list[str]:
    """Compares the number of samples with the number of successes."""
    try:
        successes = successes_in(stats)
    except (ValueError, KeyError, TypeError) as error:
        return [f"{shard}: its _stats.json cannot be read ({type(error).__name__}: {error})"]
    if successes == len(index):
        return []
    counts = printable(str(successes))
    return [f"{shard}: {len(index)} samples, but its _stats.json counts {counts} successes"]


def _compare_keys(shard: Shard, index: ShardIndex, table: bytes) -> list[str]:
    """Compares the keys with those of the successful downloads."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        log.info("%s: its .parquet is not compared; pip install pyarrow", shard)
        return []
    try:
        columns: dict[str, list[Any]] = read_table(io.BytesIO(table), columns=["key", "status"]).to_pydict()
        rows = zip(columns["key"], columns["status"], strict=True)
        expected = {str(key) for key, status in rows if status == "success"}
    except (ArrowException, OSError, ValueError, KeyError) as error:
        return [f"{shard}: its .parquet cannot be read ({printable(str(error))})"]
    found = set(index.names())
    differences = []
    for words, extra in (
        ("are in its .parquet but not in the shard", expected - found),
        ("are in the shard but not in its .parquet", found - expected),
    ):
        if extra:
            some = ", ".join(map(printable, sorted(extra)[:_KEYS_NAMED]))
            more = " ..." if len(extra) > _KEYS_NAMED else ""
            differences.append(f"{shard}: {len(extra)} keys {words}: {some}{more}")
    return differences
