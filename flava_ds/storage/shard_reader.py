"""Reads members of shards: local shards through open descriptors, remote ones through a disk cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from flava_ds.config import DataConfig
from flava_ds.errors import DataError
from flava_ds.storage import faults
from flava_ds.storage.chunk_cache import ChunkCache
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.files import LocalFile, RemoteShard, Shard, Stamp, user_cache

_OPEN_SHARDS = 64


class ShardReader:
    """Reads members by shard number and offset; a copy in another process opens its own files."""

    def __init__(self, shards: Sequence[Shard], stamps: Sequence[Stamp], config: DataConfig) -> None:
        """Raises: DataError when the shards are remote and data.cache_gib is too small."""
        self.shards, self.stamps, self.config = shards, stamps, config
        self._open: OrderedDict[int, LocalFile] = OrderedDict()
        self._cache = None
        if any(isinstance(shard, RemoteShard) for shard in shards):
            self._cache = ChunkCache(cache_folder(config), int(config.cache_gib * 2**30))

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes at `offset` of shard `number`.

        Raises: SampleFault 'truncated' when there are fewer bytes; DataError when the shard cannot be read,
        or is not the one that was indexed.
        """
        shard = self.shards[number]
        if isinstance(shard, RemoteShard):
            assert self._cache is not None
            data = self._cache.read(shard, self.stamps[number], offset, size)
        else:
            file = self._open.pop(number, None) or open_indexed(shard, self.stamps[number])
            self._open[number] = file
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            data = file.pread(size, offset)
        if len(data) < size:
            raise SampleFault(faults.TRUNCATED, f"{len(data)} of {size} bytes")
        return data

    def __reduce__(self) -> tuple:
        return ShardReader, (self.shards, self.stamps, self.config)

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            file.close()


def open_indexed(shard: Path, stamp: Stamp) -> LocalFile:
    """Opens a local shard.

    Raises: DataError when it is another version than the one whose index is in use.
    """
    file = LocalFile(shard)
    if file.stamp != stamp:
        file.close()
        raise DataError(
            f"shard '{shard}' was changed or replaced while it is being read, so its index no longer fits; "
            "leave it alone and start again"
        )
    return file


def cache_folder(config: DataConfig) -> Path:
    """Returns the folder for parts of remote shards."""
    if config.cache_directory is not None:
        return Path(config.cache_directory).expanduser()
    return user_cache() / "shards"
