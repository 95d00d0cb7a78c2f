"""Small objects are read whole or not at all."""

import logging

import fsspec
import pytest
from data.remote_files import serving

from flava_ds.errors import DataError
from flava_ds.storage.files import RemoteShard
from flava_ds.storage.small_objects import fetch, fetch_if_there, put, read_if_there

WHOLE = bytes(range(200)) * 5


@pytest.fixture
def server(tmp_path):
    """A web server over a file of 1,000 bytes and an empty one."""
    (tmp_path / "list.txt").write_bytes(WHOLE)
    (tmp_path / "empty.txt").touch()
    with serving(tmp_path) as running:
        yield running


def test_what_is_too_large_is_not_fetched(server):
    """An index, which need not be there, counts as absent; a list of shards is refused."""
    file = RemoteShard(server.url + "/list.txt")
    assert fetch_if_there(file, most=999) is None
    with pytest.raises(DataError, match="list.txt' has 1000 bytes, more than 999"):
        fetch(file, most=999)
    assert server.bytes_sent == 0
    assert fetch(file) == fetch_if_there(file) == read_if_there(file) == WHOLE


def test_what_is_empty_or_absent(server):
    assert fetch(RemoteShard(server.url + "/empty.txt")) == b""
    assert fetch_if_there(RemoteShard(server.url + "/empty.txt")) is None
    assert read_if_there(RemoteShard(server.url + "/none.txt")) is None
    with pytest.raises(DataError, match="none.txt"):
        fetch(RemoteShard(server.url + "/none.txt"))


def test_only_object_storage_is_written_to(server, caplog):
    """A hub would turn the write into a commit, and a refusal is no error."""
    assert not put(RemoteShard(server.url + "/list.txt"), b"other")
    assert fetch(RemoteShard(server.url + "/list.txt")) == WHOLE
    assert put(RemoteShard("memory://objects/a"), b"bytes")
    assert fsspec.filesystem("memory").cat_file("/objects/a") == b"bytes"
    with caplog.at_level(logging.INFO):
        assert not put(RemoteShard("memory://objects/a/under_a_file"), b"bytes")
    assert "cannot write 'memory://objects/a/under_a_file' (FileExistsError" in caplog.text
