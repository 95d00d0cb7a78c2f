"""Who may train in a folder: processes that live, that were killed, and that run on machines which cannot be
looked at.
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flava_ds import processes
from flava_ds.checkpoints import checkpoint
from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.errors import CheckpointError
from flava_ds.ranks import run_lock
from flava_ds.ranks.distributed import start
from flava_ds.ranks.lock_files import NAME
from flava_ds.ranks.run_lock import RunLock

HOLDER = """
import sys
from pathlib import Path
from flava_ds.ranks.run_lock import hold, release_all
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
release_all()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder; it lets go when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def short(monkeypatch):
    """Ages of a second instead of a minute."""
    monkeypatch.setattr(run_lock, "STALE_S", 1.0)
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(run_lock, "POLL_S", 0.05)


def elsewhere(folder: Path, age_s: float) -> Path:
    """A lock of a machine that cannot be looked at."""
    path = folder / NAME
    path.write_text(
        json.dumps(
            {
                "host": "far",
                "pid": os.getpid(),
                "machine": "another",
                "process": 1,
                "since": "yesterday",
                "id": "x",
            }
        )
    )
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_second_run_is_refused_until_the_first_one_ends(tmp_path, holder):
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path} is in use: process {holder.pid} on .* another --name"
    ):
        RunLock(tmp_path).acquire()
    holder.communicate()
    assert not list(tmp_path.iterdir())
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.held()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.kill()  # and not waited for: it is a zombie
    while processes.started(holder.pid) is not None:
        time.sleep(0.01)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.held()
    lock.release()


def test_a_process_number_that_is_used_again_is_not_the_old_process(tmp_path):
    said = {
        "host": "here",
        "pid": os.getpid(),
        "machine": processes.machine(),
        "process": processes.started(os.getpid()) - 1,
        "id": "x",
    }
    (tmp_path / NAME).write_text(json.dumps(said))
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.held()
    lock.release()


def test_another_machine_is_believed_while_its_heart_beats(tmp_path, short):
    path, stop = elsewhere(tmp_path, 0.0), threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(CheckpointError, match=r"process \d+ on far has trained there since yesterday"):
        RunLock(tmp_path).acquire()
    stop.set()
    beating.join()
    lock = RunLock(tmp_path)
    lock.acquire()  # after a second without a beat
    assert lock.held()
    lock.release()


def test_a_wait_that_other_ranks_would_not_sit_out_is_an_error(tmp_path, short, monkeypatch):
    """They would end first, with a line that blames rank 0."""
    monkeypatch.setattr(run_lock, "STALE_S", 60.0)
    elsewhere(tmp_path, 20.0)
    with pytest.raises(CheckpointError) as caught:
        RunLock(tmp_path, patience_s=0.4).acquire()
    said = str(caught.value)
    assert f"is held by process {os.getpid()} on far, which has given no sign of life for 20 s" in said
    assert "counts as gone after 60 s; start again in 40 s: " in said


def test_an_old_lock_of_another_machine_is_not_waited_for(tmp_path, monkeypatch):
    elsewhere(tmp_path, 3600.0)
    monkeypatch.setattr(run_lock.time, "sleep", lambda _: pytest.fail("it waited"))
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.held()
    lock.release()


def test_the_clock_of_this_machine_does_not_matter(tmp_path, monkeypatch):
    """The file system stamps both times that are compared."""
    elsewhere(tmp_path, 3600.0)
    monkeypatch.setattr(run_lock.time, "time", lambda: 0.0)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.held()
    lock.release()


def test_of_many_that_see_a_stale_lock_one_takes_it(tmp_path, short):
    elsewhere(tmp_path, 3600.0)
    locks, won, refused, together = [RunLock(tmp_path) for _ in range(8)], [], [], threading.Barrier(8)

    def contend(lock: RunLock) -> None:
        together.wait()
        try:
            lock.acquire()
            won.append(lock)
        except CheckpointError:
            refused.append(lock)

    threads = [threading.Thread(target=contend, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 7 and won[0].held()
    won[0].release()
    assert not list(tmp_path.iterdir())


def test_a_run_notices_that_its_folder_was_taken_and_leaves_the_new_lock_alone(tmp_path):
    run_lock.hold(tmp_path)
    run_lock.hold(tmp_path)  # the same process may build again
    assert run_lock.lost() is None
    elsewhere(tmp_path, 0.0)
    assert run_lock.lost() == str(tmp_path)
    run_lock.release_all()
    assert json.loads((tmp_path / NAME).read_text())["host"] == "far"


def test_a_lock_that_cannot_be_read_is_neither_lost_nor_this_runs_to_renew_or_remove(tmp_path, short, caplog):
    run_lock.hold(tmp_path)
    lock = tmp_path / NAME
    lock.unlink()
    lock.mkdir()  # reading it is an OSError
    os.utime(lock, (0, 0))
    assert run_lock.lost() is None and f"{lock} cannot be read" in caplog.text
    lock.rmdir()
    assert run_lock.lost() == str(tmp_path)
    lock.write_text("")
    os.utime(lock, (0, 0))
    assert run_lock.lost() is None
    time.sleep(5 * run_lock.HEARTBEAT_S)
    assert lock.stat().st_mtime == 0
    run_lock.release_all()
    assert lock.exists()


def test_the_heart_beats(tmp_path, short):
    lock = RunLock(tmp_path)
    lock.acquire()
    path = tmp_path / NAME
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 60
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    lock.release()


def test_a_full_disk_leaves_no_lock_that_says_nothing(tmp_path):
    """An empty one would keep the next start waiting for a process that never was."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            RunLock(tmp_path).acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def prepare_beside_another(folder: str) -> str:
    """What a run is told whose checkpoints would lie among those of one with the same name in another run
    directory.
    """
    config = Config(
        name="twin",
        checkpoint=CheckpointConfig(directory=f"{folder}/big"),
        logging=LoggingConfig(run_directory=folder),
    )
    other = RunLock(Path(folder) / "big" / config.name)
    other.acquire()
    try:
        checkpoint.prepare(config, start(60))
    except CheckpointError as error:
        return str(error)
    finally:
        other.release()
    return ""


@pytest.mark.distributed
def test_two_runs_of_one_name_do_not_share_a_checkpoint_directory(run_ranks, tmp_path):
    (said,) = run_ranks(prepare_beside_another, 1, str(tmp_path))
    assert "big/twin is in use" in said and "another --name" in said


def test_a_fifo_in_the_place_of_a_lock_is_not_waited_for(tmp_path, monkeypatch):
    """It says nothing, and its age decides, as with any lock that cannot be read."""
    os.mkfifo(tmp_path / NAME)
    monkeypatch.setattr(run_lock, "STALE_S", -1.0)
    lock = run_lock.RunLock(tmp_path)
    lock.acquire()
    assert lock.held() and (tmp_path / NAME).is_file()
    lock.release()
