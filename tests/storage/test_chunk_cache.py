"""The cache of remote parts: the right bytes, each fetched once, never above its limit, shared by
processes."""

import multiprocessing
import os
import time

import numpy as np
import pytest
from data.remote_files import serving
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.errors import DataError
from flava_ds.storage.chunk_cache import ChunkCache
from flava_ds.storage.files import RemoteShard, stamp_of

PART = 1000
CONTENT = np.random.default_rng(0).bytes(20 * PART + 123)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A web server over one file."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "0.tar").write_bytes(CONTENT)
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def shard(server):
    """That file and its state."""
    found = RemoteShard(server.url + "/0.tar")
    return found, stamp_of(found)


def stored(folder) -> int:
    """Bytes of the parts on disk."""
    return sum(entry.stat().st_size for entry in os.scandir(folder) if not entry.name.startswith("."))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 25),
    st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 3000)), min_size=1, max_size=20),
)
def test_any_reads_give_the_bytes_of_the_object_within_the_limit(tmp_path_factory, shard, parts, reads):
    folder = tmp_path_factory.mktemp("parts")
    cache = ChunkCache(folder, parts * PART, chunk_bytes=PART)
    for offset, size in reads:
        assert cache.read(*shard, offset, size) == CONTENT[offset : offset + size]
        assert stored(folder) <= parts * PART


def test_parts_are_fetched_once_and_the_oldest_leave_first(tmp_path, server, shard):
    cache = ChunkCache(tmp_path, 10 * PART, chunk_bytes=PART)
    before = server.asked["GET", "0.tar"]

    def fetched() -> int:
        return server.asked["GET", "0.tar"] - before

    for offset in range(0, 10 * PART, 100):
        cache.read(*shard, offset, 100)
    assert fetched() == 10 and stored(tmp_path) == 10 * PART
    cache.read(*shard, 0, 1)
    cache.read(*shard, 10 * PART, 1)
    assert fetched() == 11 and stored(tmp_path) == 10 * PART
    cache.read(*shard, 0, 1)
    assert fetched() == 11, "the first part was read again before room was made, so it stayed"
    cache.read(*shard, PART, 1)
    assert fetched() == 12, "the second part was the oldest"


def test_another_state_of_a_shard_shares_no_parts(tmp_path, server, shard):
    cache = ChunkCache(tmp_path, 10 * PART, chunk_bytes=PART)
    cache.read(*shard, 0, 10)
    before = server.asked["GET", "0.tar"]
    cache.read(shard[0], (shard[1][0], "another tag"), 0, 10)
    assert server.asked["GET", "0.tar"] == before + 1


def test_a_part_that_a_crash_left_short_is_fetched_again_and_what_a_kill_left_is_removed(
    tmp_path, server, shard
):
    cache = ChunkCache(tmp_path, 4 * PART, chunk_bytes=PART)
    cache.read(*shard, 0, PART)
    (part,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    part.write_bytes(b"")
    assert cache.read(*shard, 10, 100) == CONTENT[10:110] and part.stat().st_size == PART
    for name, age_s in ((".part-old", 7200), (".part-new", 0)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    for number in range(1, 8):
        cache.read(*shard, number * PART, 1)
    assert not (tmp_path / ".part-old").exists() and (tmp_path / ".part-new").exists()


def _read_much(folder, shard, stamp, seed) -> None:
    """Reads at random places in a process of its own."""
    cache, draw = ChunkCache(folder, 6 * PART, chunk_bytes=PART), np.random.default_rng(seed)
    for offset in draw.integers(0, len(CONTENT) - 500, 60).tolist():
        if cache.read(shard, stamp, offset, 500) != CONTENT[offset : offset + 500]:
            os._exit(1)


def test_processes_share_a_folder_and_its_limit(tmp_path, shard):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_much, args=(tmp_path, *shard, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        most = max(most, _stored_while_files_go(tmp_path))
        processes[0].join(0.005)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert most <= 6 * PART and stored(tmp_path) <= 6 * PART


def _stored_while_files_go(folder) -> int:
    """Bytes of the parts on disk, while another process may remove some."""
    sizes = []
    for name in os.listdir(folder):
        try:
            sizes.append(0 if name.startswith(".") else os.stat(folder / name).st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


def test_a_limit_too_small_and_a_folder_that_is_none_are_refused(tmp_path, shard):
    with pytest.raises(DataError, match="data.cache_gib"):
        ChunkCache(tmp_path, PART, chunk_bytes=PART)
    (tmp_path / "file").touch()
    cache = ChunkCache(tmp_path, 10 * PART, chunk_bytes=PART)
    cache.read(*shard, 0, 10)
    [part] = tmp_path.glob("*-000000")
    part.unlink()
    part.symlink_to(part)  # cannot be opened, as the part of another user
    with pytest.raises(DataError, match="cannot be read: .*set data.cache_directory"):
        cache.read(*shard, 0, 10)
    with pytest.raises(DataError, match="cannot be written: .*data.cache_directory"):
        ChunkCache(tmp_path / "file" / "parts", 10 * PART, chunk_bytes=PART).read(*shard, 0, 10)
