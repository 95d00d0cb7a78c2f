"""The lock of a run with checkpoints in object storage: fsspec's memory, and a server of S3's protocol."""

import json
import threading
import time
from functools import partial

import fsspec
import pytest
from s3_server import s3_bucket

from flava_ds.errors import CheckpointError
from flava_ds.ranks import run_lock
from flava_ds.ranks.lock_files import NAME
from flava_ds.ranks.run_lock import RunLock


@pytest.fixture(params=["memory", "s3"])
def url(request):
    """The place of a run's checkpoints."""
    if request.param == "memory":
        yield "memory://bucket/runs/mine"
        fsspec.filesystem("memory").store.clear()
    else:
        with s3_bucket() as (bucket, _):
            yield f"{bucket}/runs/mine"


@pytest.fixture
def short(monkeypatch):
    """Ages of seconds instead of a minute; S3's stamps are whole seconds."""
    monkeypatch.setattr(run_lock, "STALE_S", 3.0)
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr(run_lock, "POLL_S", 0.1)


def objects(url):
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return [name.rsplit("/", 1)[-1] for name in fs.find(path)]


def write(url, said):
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{path}/{NAME}", json.dumps(said).encode())


FAR = {"host": "far", "pid": 7, "machine": "another", "process": 1, "since": "yesterday", "id": "x"}


def test_a_second_run_is_refused_until_the_first_one_ends(url):
    run_lock.hold(url)
    run_lock.hold(url)  # the same process may build again
    assert objects(url) == [NAME] and run_lock.lost() is None
    with pytest.raises(CheckpointError, match=f"{url} is in use: process .* another --name"):
        RunLock(url).acquire()
    run_lock.release_all()
    assert objects(url) == []


def test_another_machine_is_believed_while_its_heart_beats_and_no_longer(url, short):
    write(url, FAR)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.5):
            write(url, FAR)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(CheckpointError, match="process 7 on far has trained there since yesterday"):
            RunLock(url).acquire()
    finally:
        stop.set()
        beating.join()
    lock = RunLock(url)
    lock.acquire()  # after seconds without a beat
    assert lock.held() and objects(url) == [NAME]
    lock.release()
    assert objects(url) == []


def test_the_heart_beats(url, short):
    lock = RunLock(url)
    lock.acquire()
    first, deadline = lock.file.stamp(), time.monotonic() + 60
    while lock.file.stamp() == first and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lock.file.stamp() > first
    lock.release()


def test_a_run_notices_that_another_has_taken_over_and_leaves_its_lock_alone(url):
    run_lock.hold(url)
    write(url, FAR)
    assert run_lock.lost() == url
    run_lock.release_all()
    assert objects(url) == [NAME]


def test_a_storage_that_does_not_answer_has_not_taken_anything(url, monkeypatch, caplog):
    run_lock.hold(url)
    lock = run_lock._HELD[url]
    with monkeypatch.context() as patch:
        patch.setattr(lock.file, "_url", "memory-of-nothing://gone")
        assert run_lock.lost() is None and "cannot be read" in caplog.text
        assert run_lock.lost() is None
    run_lock.release_all()


def test_of_two_that_begin_at_once_one_notices(url, monkeypatch):
    """Not every storage can create an object only if there is none."""
    ours, theirs = RunLock(url), RunLock(url)
    renew = type(ours.file).renew

    def both(file, said):
        renew(file, said)
        renew(file, theirs._said)

    monkeypatch.setattr(ours.file, "renew", partial(both, ours.file))
    with pytest.raises(CheckpointError, match="is in use"):
        ours.acquire()
