"""Files and JSON of others: with limits."""

import os
import tracemalloc
from pathlib import Path

import pytest

from flava_ds import config as configuration
from flava_ds.config.plain_files import loads, open_regular, read_small
from flava_ds.errors import ConfigError, DataError
from flava_ds.storage.files import LocalFile


def test_a_regular_file_is_read_up_to_a_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_small(path) == read_small(path, most=5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        read_small(path, most=4)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "gone")
    with pytest.raises(IsADirectoryError):
        read_small(tmp_path)


def test_a_small_file_takes_little_memory(tmp_path):
    """A lock's heartbeat reads one every ten seconds, also when memory is short."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    tracemalloc.start()
    try:
        assert read_small(path) == b"12345"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_file_without_a_size_is_read_whole():
    assert read_small(Path("/proc/self/cmdline"))
    with pytest.raises(OSError, match="has more than 2 bytes"):
        read_small(Path("/proc/self/cmdline"), most=2)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("fifo", "link"):
        with pytest.raises(OSError, match="is not a regular file"):
            open_regular(tmp_path / name)
        with pytest.raises(DataError, match="is not a regular file"):
            LocalFile(tmp_path / name)
        with pytest.raises(OSError, match="is not a regular file"):
            configuration.load(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


ENDLESS = [
    ("[" * 100_000, "nested too deeply"),
    ('{"a":' * 100_000, "nested too deeply"),
    ('{"a": 1, "a": 2}', "'a' occurs twice"),
]


@pytest.mark.parametrize(("text", "said"), ENDLESS)
def test_json_without_an_end_or_with_a_key_twice_is_an_error(text, said):
    with pytest.raises(ValueError, match=said):
        loads(text)
    with pytest.raises(ConfigError, match=f"config.json: .*{said}"):
        configuration.parse(text.encode(), "config.json")


def test_many_keys_take_no_quadratic_time():
    """A hundred thousand keys, each counted among all, would be ten thousand million comparisons."""
    text = "{" + ", ".join(f'"{number}": 0' for number in range(100_000)) + "}"
    assert len(loads(text)) == 100_000
