"""Writes shards in img2dataset's layout and packs folders of shards, reproducibly to the byte."""

import json
import lzma
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flava_ds.prepare.shard_writer import add_member

Sample = dict[str, Any]
"""A sample: its key (str) under "key", and its members (bytes) under suffixes such as "webp" and "json"."""


def as_json(record: object) -> bytes:
    """Serialises a record compactly, keeping the order of its fields."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def write_shards(folder: Path, samples: Iterable[Sample], per_shard: int) -> int:
    """Writes samples as 00000.tar, 00001.tar, ..., the last one shorter. Returns the number of samples."""
    ordered = list(samples)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(ordered), per_shard)):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in ordered[start : start + per_shard]:
                for suffix, data in sample.items():
                    if suffix != "key":
                        add_member(tar, f"{sample['key']}.{suffix}", data)
    return len(ordered)


def pack(archive: Path, root: Path, names: Sequence[str]) -> None:
    """Compresses files and folders below `root` into a .tar.xz with members in name order."""
    paths = sorted(
        path
        for name in names
        for path in ([root / name] if (root / name).is_file() else (root / name).iterdir())
    )
    with lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path in paths:
                add_member(tar, path.relative_to(root).as_posix(), path.read_bytes())
