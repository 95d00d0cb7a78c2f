"""Reads from a server that stalls, fails and lies: repeated, given up in time, and named without the secrets
of its address.
"""

import logging
import re
import threading
from dataclasses import replace

import fsspec
import pytest
from data.remote_files import serving
from data.shard_files import pair_members, write_tar

from flava_ds.config import UNCHANGED, Config, DataConfig, SourceConfig, check
from flava_ds.data.loader import StepLoader
from flava_ds.errors import ConfigError, DataError
from flava_ds.families.flava.config import flava_objectives
from flava_ds.storage.files import RemoteFile, RemoteShard, stamp_of
from flava_ds.storage.index import load_index
from flava_ds.storage.retry import ReadPolicy, call, call_once, policy_of
from flava_ds.storage.shards import list_shards

QUICK = ReadPolicy(retries=2, timeout_s=1.0)
PATIENT = ReadPolicy(retries=2, timeout_s=60.0)
"""For a server that answers at once, which on a busy machine may take a while."""
ASKED = {"reset": 2}
"""Requests per attempt: aiohttp repeats a GET once by itself when its connection is torn down."""


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def server(tmp_path):
    """A web server over one shard of pairs."""
    (tmp_path / "web").mkdir()
    write_tar(tmp_path / "web" / "0.tar", pair_members(range(8)))
    with serving(tmp_path / "web") as running:
        yield running


def remote(server, policy=QUICK):
    """The shard's bytes on disk, and the shard as an object; its address has a signature."""
    data = (server.folder / "0.tar").read_bytes()
    return data, RemoteFile(RemoteShard(server.url + "/0.tar?signature=SECRET", policy), len(data))


@pytest.mark.parametrize("fault", [503, 429, "stall", "stall in body", "reset", "cut", "short"])
def test_what_fails_twice_works_the_third_time_and_every_attempt_is_logged(server, fault, caplog):
    data, file = remote(server, QUICK if "stall" in str(fault) else PATIENT)
    server.faults.extend([fault] * 2 * ASKED.get(fault, 1))
    assert file.pread(3000, 512) == data[512:3512]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2 and not server.faults
    for number, line in enumerate(lines, 1):
        assert re.search(
            (
                rf"bytes 512 to 3511 of 'http://127\.0\.0\.1:\d+/0\.tar' could not be read, attempt {number} "
                r"of 3: .*; retrying in 0\.0 s$"
            ),
            line,
        )
        assert "SECRET" not in line and "\n" not in line


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (503, "503"),
        ("stall", "no answer within 1 s"),
        ("reset", "Disconnected|reset"),
        ("cut", "Payload"),
        ("short", "of 3000 bytes;"),
    ],
)
def test_the_last_attempt_names_the_shard_and_what_happened(server, fault, told):
    file = remote(server, QUICK if fault == "stall" else PATIENT)[1]
    server.faults.extend([fault] * 3 * ASKED.get(fault, 1))
    with pytest.raises(
        DataError,
        match=(
            r"bytes 512 to 3511 of 'http://127.*/0\.tar' cannot be read after 3 attempts: "
            rf".*({told}).*read_retries"
        ),
    ) as caught:
        file.pread(3000, 512)
    assert not server.faults and "SECRET" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "told"),
    [(403, "may not be read"), (404, "does not exist"), (416, "is refused by the server .*416")],
)
def test_the_servers_last_word_is_not_asked_for_twice(server, status, told):
    file = remote(server, PATIENT)[1]
    server.faults.append(status)
    with pytest.raises(DataError, match=f"0.tar' {told}") as caught:
        file.pread(3000, 512)
    assert server.asked["GET", "0.tar"] == 1 and "SECRET" not in str(caught.value)


class Refusing(fsspec.AbstractFileSystem):
    """A protocol whose errors keep the server's status as Azure's or botocore's do."""

    protocol = "refusing"
    asked = 0

    def cat_file(self, path, **_):
        Refusing.asked += 1
        error = RuntimeError("no")
        if "azure" in path:
            error.status_code = 403
        else:
            error.response = {"ResponseMetadata": {"HTTPStatusCode": 404}}
        raise error


@pytest.mark.parametrize(("name", "told"), [("azure", "may not be read"), ("botocore", "does not exist")])
def test_the_status_is_found_where_a_protocol_keeps_it(name, told):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    before = Refusing.asked
    with pytest.raises(DataError, match=told):
        call(f"refusing://{name}/0.tar", "cat_file", PATIENT)
    assert Refusing.asked == before + 1


def test_a_server_that_is_down_is_not_taken_for_a_missing_shard():
    """fsspec reports whatever fails while it asks for a size as a missing file."""
    shard = RemoteShard("http://127.0.0.1:9/0.tar?signature=SECRET", PATIENT)
    with pytest.raises(
        DataError, match="0.tar' cannot be read after 3 attempts: ClientConnect.*refused|Cannot connect"
    ) as caught:
        stamp_of(shard)
    assert "does not exist" not in str(caught.value) and "SECRET" not in str(caught.value)


class Stalling(fsspec.AbstractFileSystem):
    """A protocol without coroutines, which blocks until it is released."""

    protocol = "stalling"
    released = threading.Event()

    def cat_file(self, path, start=None, end=None, **_):
        if "slow" in path:
            self.released.wait()
        return b"content"


def test_a_protocol_that_blocks_is_given_up():
    fsspec.register_implementation("stalling", Stalling, clobber=True)
    assert call_once("stalling://quick/0.tar", "cat_file", 60.0) == b"content"
    try:
        with pytest.raises(TimeoutError):
            call_once("stalling://slow/0.tar", "cat_file", 0.1)
    finally:
        Stalling.released.set()


def test_pauses_double_stay_bounded_and_depend_on_the_seed(monkeypatch):
    monkeypatch.undo()
    waits = [[ReadPolicy(seed=seed).wait_s(number, "x") for number in range(1, 12)] for seed in (0, 0, 1)]
    assert waits[0] == waits[1] != waits[2]
    for number, wait in enumerate(waits[0]):
        assert 0.5 <= wait / min(0.5 * 2**number, 30) < 1.5
    assert ReadPolicy().wait_s(1, "x") != ReadPolicy().wait_s(1, "y")


def test_the_policy_of_a_run_reaches_its_reads(server, make_config, tmp_path):
    data = {
        "cache_directory": str(tmp_path / "parts"),
        "cache_gib": 0.5,
        "read_retries": 1,
        "read_timeout_s": 0.4,
    }
    config = make_config(data=data, seed=5)
    images = replace(config.data.sources["images"], shards=server.url + "/0.tar", transform=UNCHANGED)
    config = config.with_sources({"images": images})
    assert policy_of(config) == ReadPolicy(retries=1, timeout_s=0.4, seed=5)
    (shard,) = list_shards(images.shards, "images", policy_of(config))
    assert shard.policy == shard.beside("x").policy == policy_of(config) and shard == RemoteShard(shard.url)
    load_index(shard)
    server.faults.extend(["stall", "stall"])
    with pytest.raises(DataError, match=r"cannot be read after 2 attempts: no answer within 0\.4 s"):
        StepLoader(config)  # which reads some samples, to compare their bytes with other ranks'


def test_times_that_cannot_work_are_refused():
    def data(**changes):
        return Config(
            name="x",
            objectives=flava_objectives(),
            data=DataConfig(sources={"a": SourceConfig(kind="image", shards="http://host/0.tar")}, **changes),
        )

    check(data())
    for changes, told in (
        ({"read_timeout_s": 0}, "data.read_timeout_s is 0"),
        ({"read_retries": -1}, "data.read_retries is -1"),
        ({"worker_timeout_s": 100}, "data.worker_timeout_s 100 is less than the 150 s"),
    ):
        with pytest.raises(ConfigError, match=told):
            check(data(**changes))
