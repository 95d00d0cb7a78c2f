"""Shards from a web server and from fsspec's memory: indexed, read, retried, refused."""

import hashlib
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data.remote_files import serving
from data.shard_files import pair_members, write_tar

from flava_ds.data.loader import StepLoader
from flava_ds.errors import DataError, UserError
from flava_ds.processes import listen
from flava_ds.storage.files import (
    CACHE_VARIABLE,
    CHUNK_BYTES,
    FIRST_BYTES,
    GROWTH,
    LocalFile,
    ReadAhead,
    RemoteFile,
    RemoteShard,
    SequentialReader,
    user_cache,
)
from flava_ds.storage.index import load_index, load_indexes
from flava_ds.storage.index_files import index_files
from flava_ds.storage.shard_index import scan_shard
from flava_ds.storage.shards import list_shards

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def server(tmp_path):
    """A web server over two shards of pairs."""
    (tmp_path / "web").mkdir()
    write_tar(tmp_path / "web" / "0.tar", pair_members(range(0, 13)))
    write_tar(tmp_path / "web" / "1.tar", pair_members(range(13, 23)))
    with serving(tmp_path / "web") as running:
        yield running


def same(ours, theirs):
    columns = ("keys", "key_ends", "member_sample", "member_suffix", "member_offset", "member_size")
    return (
        all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in columns)
        and ours.suffixes == theirs.suffixes
    )


@pytest.mark.parametrize("pattern", ["/{0..1}.tar", "/", "/list.txt"])
def test_shards_of_a_web_server_are_indexed_as_on_disk_and_once(server, pattern):
    (server.folder / "list.txt").write_text("1.tar\n0.tar\n")
    shards = list_shards(server.url + pattern)
    assert [shard.name for shard in shards] == ["0.tar", "1.tar"]
    for shard, index in zip(shards, load_indexes(shards, checksum=True), strict=True):
        local = server.folder / shard.name
        assert (
            same(index, scan_shard(local))
            and index.checksum == hashlib.sha256(local.read_bytes()).hexdigest()
        )
    sent, read = server.bytes_sent, ("0.tar", "1.tar", *(["list.txt"] if pattern == "/list.txt" else []))
    assert sent == sum((server.folder / name).stat().st_size for name in read)
    assert len([*load_indexes(shards)]) == 2 and server.bytes_sent == sent


def test_an_index_beside_a_remote_shard_is_used_and_copied(server):
    shard = RemoteShard(server.url + "/0.tar")
    index = load_index(shard)
    _, cached = index_files(shard)
    cached.rename(server.folder / "0.tar.index.npz")
    before = server.asked["GET", "0.tar"]
    assert same(load_index(shard), index) and server.asked["GET", "0.tar"] == before
    (server.folder / "0.tar.index.npz").unlink()
    assert same(load_index(shard), index) and server.asked["GET", "0.tar"] == before


def test_a_replaced_remote_shard_is_indexed_again(server):
    shard = RemoteShard(server.url + "/0.tar")
    assert len(load_index(shard)) == 13
    write_tar(server.folder / "0.tar", pair_members(range(5)))
    assert len(load_index(shard)) == 5


def test_training_reads_the_same_from_a_web_server_as_from_disk(server, make_config, tmp_path):
    config = make_config(data={"cache_directory": str(tmp_path / "parts"), "cache_gib": 0.5})
    remote = replace(config.data.sources["pairs"], shards=server.url + "/{0..1}.tar")
    from_web = config.with_sources(config.data.sources | {"pairs": remote})
    for ours, theirs in zip(StepLoader(from_web), StepLoader(config), strict=True):
        assert ours[0].keys == theirs[0].keys
        assert ours[0].tensors.keys() == theirs[0].tensors.keys()
        assert all(bool((ours[0][name] == theirs[0][name]).all()) for name in ours[0].tensors)
    assert server.asked["GET", "0.tar"] == 2, (
        "once to index, once for the only part, whatever the number of samples"
    )
    StepLoader(from_web, start_step=3).check_state(StepLoader(config).state(3))


def test_object_storage_keeps_the_index_beside_the_shard(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/corpus/0.tar", write_tar(tmp_path / "0.tar", pair_members(range(4))).read_bytes())
    (shard,) = list_shards("memory://corpus")
    assert len(load_index(shard)) == 4
    assert fs.exists("/corpus/0.tar.index.npz")
    fs.rm("/corpus", recursive=True)
    with pytest.raises(DataError, match="'memory://.*0.tar' does not exist"):
        load_index(shard)


def test_absent_shards_and_servers_without_ranges_are_refused(server):
    with pytest.raises(DataError, match="7.tar' does not exist"):
        load_index(RemoteShard(server.url + "/7.tar"))
    server.ranges = False
    size = (server.folder / "0.tar").stat().st_size
    with pytest.raises(DataError, match="does not support range requests"):
        RemoteFile(RemoteShard(server.url + "/0.tar"), size).pread(100, 512)


def test_small_reads_of_a_remote_file_share_a_request(server):
    content = np.random.default_rng(0).bytes(CHUNK_BYTES + 7000)
    (server.folder / "file").write_bytes(content)
    file = ReadAhead(RemoteFile(RemoteShard(server.url + "/file"), len(content)))
    for offset in range(0, 7000, 100):
        assert file.pread(100, offset) == content[offset : offset + 100]
    assert server.asked["GET", "file"] == 1
    ends = [(100, CHUNK_BYTES - 50), (CHUNK_BYTES, 20), (9000, CHUNK_BYTES), (10, len(content)), (3, 5)]
    for size, offset in ends:
        assert file.pread(size, offset) == content[offset : offset + size]


def test_what_is_read_ahead_begins_small_and_grows():
    """A header alone costs little, and a file of small tensors few requests."""
    asked: list[int] = []

    class Endless:
        size = 2**40

        def pread(self, size: int, offset: int) -> bytes:
            asked.append(size)
            return bytes(size)

    file = ReadAhead(Endless())
    file.pread(8, 0)
    assert asked == [FIRST_BYTES]
    file.pread(2 * FIRST_BYTES, 8)
    for offset in range(FIRST_BYTES, 4 * CHUNK_BYTES, FIRST_BYTES):
        file.pread(FIRST_BYTES, offset)
    assert asked[1] == GROWTH * FIRST_BYTES and asked[-1] == CHUNK_BYTES and len(asked) < 8
    ReadAhead(Endless()).pread(20 * FIRST_BYTES, 8)  # a longer header comes in one piece
    assert asked[-1] == 20 * FIRST_BYTES


@pytest.mark.parametrize("checksum", [True, False])
def test_a_sequential_reader_gives_the_bytes_of_the_file_across_its_chunks(tmp_path, checksum):
    content = np.random.default_rng(0).bytes(3 * CHUNK_BYTES + 77)
    path = tmp_path / "file"
    path.write_bytes(content)
    reader, signs = SequentialReader(LocalFile(path), checksum), []
    stop_listening = listen(lambda: signs.append("alive"))
    for offset, size in (
        (0, 512),
        (CHUNK_BYTES - 100, 512),
        (CHUNK_BYTES + 900, CHUNK_BYTES + 5),
        (3 * CHUNK_BYTES, 900),
    ):
        assert reader.pread(size, offset) == content[offset : offset + size]
    assert reader.checksum() == (hashlib.sha256(content).hexdigest() if checksum else None)
    reader.close()
    stop_listening()
    assert len(signs) == 4, "each chunk that arrives is a sign of life"


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "flava_ds"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "flava_ds"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    assert user_cache() == tmp_path / "own"


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch):
    """As in a container that runs as a user whom it does not know."""
    for variable in (CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_100_017)
    for named in (None, "~/cache"):
        if named:
            monkeypatch.setenv(CACHE_VARIABLE, named)
        with pytest.raises(UserError, match="user 4100017 has no home here; set FLAVA_DS_CACHE"):
            user_cache()
