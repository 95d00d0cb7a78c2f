"""What img2dataset says about a shard, in 00000_stats.json and 00000.parquet beside 00000.tar, against what
the shard holds.
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

from flava_ds.data.samples import printable
from flava_ds.storage.files import Shard, fetch_if_there
from flava_ds.storage.index import ShardIndex

log = logging.getLogger(__name__)

_KEYS_NAMED = 3


def compare(shard: Shard, index: ShardIndex) -> list[str] | None:
    """Returns the differences between a shard and its reports, each in words; None when there is no report.

    The .json tells how many downloads succeeded; the .parquet tells which, and is read where pyarrow is
    installed.
    """
    stem = shard.name.removesuffix(".tar")
    stats, table = _beside(shard, f"{stem}_stats.json"), _beside(shard, f"{stem}.parquet")
    if stats is None and table is None:
        return None
    differences = []
    if stats is not None:
        differences += _compare_count(shard, index, stats)
    if table is not None:
        differences += _compare_keys(shard, index, table)
    return differences


def _compare_count(shard: Shard, index: ShardIndex, stats: bytes) -> list[str]:
    """Compares the number of samples with the successes."""
    try:
        successes = json.loads(stats)["successes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{shard}: its _stats.json cannot be read ({type(error).__name__}: {error})"]
    return (
        []
        if successes == len(index)
        else [
            f"{shard}: {len(index)} samples, but its _stats.json counts {printable(str(successes))} successes"
        ]
    )


def _compare_keys(shard: Shard, index: ShardIndex, table: bytes) -> list[str]:
    """Compares the keys with those whose download succeeded."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        log.info("%s: its .parquet is not compared; pip install pyarrow", shard)
        return []
    try:
        columns: dict[str, list[Any]] = read_table(io.BytesIO(table), columns=["key", "status"]).to_pydict()
        expected = {
            str(key)
            for key, status in zip(columns["key"], columns["status"], strict=True)
            if status == "success"
        }
    except (ArrowException, OSError, ValueError, KeyError) as error:
        return [f"{shard}: its .parquet cannot be read ({printable(str(error))})"]
    starts = [0, *index.key_ends.tolist()]
    keys = index.keys.tobytes()
    found = {keys[a:b].decode("utf-8", "replace") for a, b in zip(starts, starts[1:], strict=False)}
    differences = []
    for words, extra in (
        ("are in its .parquet but not in the shard", expected - found),
        ("are in the shard but not in its .parquet", found - expected),
    ):
        if extra:
            some = ", ".join(map(printable, sorted(extra)[:_KEYS_NAMED]))
            differences.append(
                f"{shard}: {len(extra)} keys {words}: {some}{' ...' if len(extra) > _KEYS_NAMED else ''}"
            )
    return differences


def _beside(shard: Shard, name: str) -> bytes | None:
    """Returns a file of the shard's folder; None when it is not there."""
    if not isinstance(shard, Path):
        return fetch_if_there(shard.beside(name))
    file = shard.with_name(name)
    return file.read_bytes() if file.is_file() else None
