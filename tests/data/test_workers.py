"""Loader processes that are killed, stopped or blocked: named within seconds, with nothing left behind."""

import faulthandler
import gc
import mmap
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from flava_ds.data import workers
from flava_ds.data.loader import StepLoader
from flava_ds.errors import DataError
from flava_ds.processes import sign_of_life, state_of
from flava_ds.storage.parallel import for_each


class Slow:
    """A reader that gives its process the time to be killed while it works, and says which process it is."""

    def __init__(self, reader, after: int, action) -> None:
        self.reader, self.after, self.action = reader, after, action

    def batch(self, positions: np.ndarray, empty=torch.empty, lane: int = 0):
        if positions[0] >= self.after:
            self.action()
        return self.reader.batch(positions, empty, lane)


@pytest.fixture
def loader_of(make_config):
    """Returns a function that builds a loader of two processes over images; from the sample at `after` on, a
    process runs `action` first.
    """

    def build(action, after: int = 0, timeout_s: int = 60) -> StepLoader:
        config = make_config(
            data={"num_workers": 2, "prefetch_batches": 1, "worker_timeout_s": timeout_s},
            training={"total_steps": 200},
        )
        loader = StepLoader(config.with_sources({"images": config.data.sources["images"]}))
        loader.readers = {name: Slow(reader, after, action) for name, reader in loader.readers.items()}
        return loader

    return build


def children() -> set:
    """Loader processes that are alive.

    The death of one may raise in the middle of multiprocessing's own look at it, which then never knows its
    exit code; the system does know.
    """
    return {
        process
        for process in multiprocessing.active_children()
        if process.is_alive() and state_of(process.pid)
    }


def assert_gone(before: set) -> None:
    """Waits for the end of all loader processes but those of `before`; on a busy machine a killed process
    takes a while.
    """
    end = time.monotonic() + 60
    while not children() <= before:
        assert time.monotonic() < end, [(process, state_of(process.pid)) for process in children()]
        time.sleep(0.05)


def kill_self(number: int) -> None:
    """Ends the calling process as the kernel does when memory runs out, or as a fault does, without a dump of
    where it was.
    """
    faulthandler.disable()
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (signal.SIGKILL, "lower data.num_workers"),
        (signal.SIGBUS, "enlarge /dev/shm"),
        (signal.SIGSEGV, "a native library"),
        (signal.SIGABRT, "log"),
    ],
)
def test_a_killed_process_is_named_with_its_signal_and_advice(loader_of, number, advice):
    before = children()
    with pytest.raises(
        DataError, match=rf"number [01] of 2 \(pid \d+\) was killed by {number.name}; .*{advice}"
    ) as caught:
        list(loader_of(lambda: kill_self(number), after=24))
    assert "\n" not in str(caught.value)
    del caught
    assert_gone(before)


def test_a_lock_that_a_killed_process_holds_hangs_nobody(loader_of, monkeypatch):
    """A process is killed because another died, and may be looking at the event that would tell it to end."""
    started, held, started_by, ended_by = [], [], workers._started, workers._end_all

    def end_and_hold(processes):
        ended_by(processes)
        if not held:
            held.append(started[0]._workers_done_event._cond.acquire(timeout=1))

    monkeypatch.setattr(workers, "_started", lambda *args: started.append(started_by(*args)) or started[0])
    monkeypatch.setattr(workers, "_end_all", end_and_hold)
    before = children()
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        list(loader_of(lambda: kill_self(signal.SIGKILL), after=24))
    assert started[0]._shutdown, "torch's end would wait for the lock"
    started.clear()  # torch's iterator ends
    gc.collect()
    assert_gone(before)


def test_a_process_that_leaves_with_a_status_is_named(loader_of):
    with pytest.raises(
        DataError, match=r"number [01] of 2 \(pid \d+\) ended with status 3; see its last lines"
    ):
        list(loader_of(lambda: os._exit(3)))


@pytest.mark.parametrize("main", [True, False])
def test_a_process_killed_from_outside_ends_the_wait_at_once(loader_of, main):
    """Both processes sleep; one is killed, by somebody else. In a thread, where no signal is seen, torch
    looks at its processes itself.
    """
    found, before = [], children()

    def read() -> None:
        try:
            list(loader_of(lambda: time.sleep(600), timeout_s=600 if main else 6))
        except DataError as error:
            found.append((str(error), time.monotonic()))

    def kill() -> None:
        while len(victims := children() - before) < 2:
            time.sleep(0.01)
        time.sleep(0.5)
        victim = min(victims, key=lambda process: process.pid)
        found.append((victim.pid, time.monotonic()))
        os.kill(victim.pid, signal.SIGKILL)

    other = threading.Thread(target=kill if main else read)
    other.start()
    (read if main else kill)()
    other.join()
    (pid, at), (said, noticed) = found
    assert f"(pid {pid}) was killed by SIGKILL" in said and noticed - at < 60
    assert_gone(before)


# On a busy machine a process may take some seconds until it sends its first batch; a shorter time would name
# one that starts.
def test_a_stopped_process_is_named_after_the_time_and_ended(loader_of):
    before = children()
    with pytest.raises(
        DataError,
        match=(
            r"number [01] of 2 \(pid \d+\) has sent no batch for 8 s .*worker_timeout_s\); it is stopped "
            r"by a signal"
        ),
    ):
        list(loader_of(lambda: kill_self(signal.SIGSTOP), after=24, timeout_s=8))
    assert_gone(before)


def test_a_process_that_never_finishes_a_batch_is_named_as_waiting(loader_of):
    with pytest.raises(
        DataError,
        match=(
            r"has sent no batch for 8 s .*it waits, for storage or another process; raise "
            r"data.worker_timeout_s"
        ),
    ):
        list(loader_of(lambda: time.sleep(600), after=24, timeout_s=8))


class Late:
    """torch's iterator over one process, whose batch comes after the time has passed `times` times."""

    def __init__(self, times: int) -> None:
        self._workers = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))]
        self._workers[0].start()
        self._shutdown, self.times = False, times

    def __next__(self) -> str:
        self.times -= 1
        if self.times >= 0:
            raise RuntimeError("DataLoader timed out after 60 seconds")
        return "batch"


def test_a_process_that_gives_signs_of_life_is_waited_for(monkeypatch):
    """Not longer than the time after the last one."""
    monkeypatch.setattr(workers, "_LATER_S", 0.01)
    signs, late = mmap.mmap(-1, workers._TIME.size), Late(3)
    workers._TIME.pack_into(signs, 0, time.monotonic())
    results = workers._results(late, 60, signs)
    assert next(results) == "batch"
    late.times = 1
    workers._TIME.pack_into(signs, 0, time.monotonic() - 61)
    with pytest.raises(DataError, match="number 0 of 1 .* has sent no batch for 60 s"):
        next(results)


def test_a_process_that_never_gave_a_sign_is_not_waited_for(monkeypatch):
    """Even if the machine, whose clock begins when it starts, is younger than the time."""
    monkeypatch.setattr(workers, "_LATER_S", 0.01)
    with pytest.raises(DataError, match="number 0 of 1 .* has sent no batch for 604800 s"):
        next(workers._results(Late(1), 604_800, mmap.mmap(-1, workers._TIME.size)))


def test_the_alarm_rings_when_there_are_no_more_signs_of_life(monkeypatch):
    monkeypatch.setattr(workers, "_LATER_S", 0.01)
    asked = []
    with pytest.raises(TimeoutError), workers._alarm(0.01, lambda: asked.append(None) or len(asked) < 3):
        time.sleep(600)
    assert len(asked) == 3


class Signs(Dataset):
    """Numbers, read by two processes; the one that reads 0 gives no sign of life."""

    def __getitem__(self, number: int) -> int:
        if number:
            sign_of_life()
        return number


def test_signs_of_life_reach_the_trainer():
    given = {"batch_size": None, "sampler": range(2), "multiprocessing_context": "fork"}
    loader = DataLoader(Signs(), num_workers=2, worker_init_fn=workers.start_worker, **given)
    before = time.monotonic()
    sign_of_life()  # does nothing in the trainer
    assert list(workers.watched(loader)) == [0, 1]
    first, second = struct.unpack("dd", workers._signs[:])
    assert first == 0 and before < second < time.monotonic()


def test_a_death_does_not_disturb_the_step_between_two_batches(loader_of):
    """torch's own handler would raise in the middle of whatever the trainer computes."""
    batches, before = iter(loader_of(lambda: None)), children()
    next(batches)
    handler = signal.getsignal(signal.SIGCHLD)
    victim = min(children() - before, key=lambda process: process.pid)
    os.kill(victim.pid, signal.SIGKILL)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(1000))
    with pytest.raises(DataError, match=rf"\(pid {victim.pid}\) was killed by SIGKILL"):
        next(batches)
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_signals_to_all_processes_of_a_job_are_left_to_the_trainer(loader_of):
    """Slurm and DeepSpeed's launcher ask every process to end; the trainer finishes its step first."""
    before = children()
    batches = iter(loader_of(lambda: None))
    for _, number in zip(range(3), (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), strict=True):
        next(batches)
        for process in children() - before:
            os.kill(process.pid, number)
    assert len(list(batches)) == 197
    assert_gone(before)


def test_an_error_that_keeps_the_loader_alive_ends_the_process(tmp_path):
    """Workers ignore SIGTERM, so Python's exit has to kill them: it once waited for them forever."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import itertools\n"
        "from torch.utils.data import DataLoader, IterableDataset\n"
        "from flava_ds.data.workers import start_worker, watched\n"
        "forked = dict(multiprocessing_context='fork', worker_init_fn=start_worker)\n"
        "class Numbers(IterableDataset):\n"
        "    def __iter__(self):\n"
        "        return itertools.count()\n"
        "batches = watched(DataLoader(Numbers(), num_workers=2, **forked))\n"
        "next(batches)\n"
        "raise SystemExit('the step failed')\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (1, "the step failed\n")


LIMITED = """
import itertools, os, resource
from torch.utils.data import DataLoader, IterableDataset
from flava_ds.data.workers import start_worker, watched
from flava_ds.errors import DataError

forked = dict(multiprocessing_context="fork", worker_init_fn=start_worker)

class Numbers(IterableDataset):
    def __iter__(self):
        return itertools.count()

open_files = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 16, open_files + 16))
try:
    next(watched(DataLoader(Numbers(), num_workers=32, **forked)))
except DataError as error:
    print(error)
"""


def test_processes_that_the_system_refuses_leave_none_of_the_others_behind():
    """Python's exit waited forever for those that had been started."""
    ended = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and "Exception ignored" not in ended.stderr, ended.stderr
    assert ended.stdout.startswith("the 32 loader processes cannot be started ([Errno 24] Too many open")


LEFT_EARLY = """
import multiprocessing, sys, time
from torch.utils.data import DataLoader, Dataset
from flava_ds.data.workers import start_worker, watched

forked = dict(multiprocessing_context="fork", worker_init_fn=start_worker)

class Numbers(Dataset):
    def __getitem__(self, number):
        time.sleep(3600 * number)
        return number

class Order:
    def __iter__(self):
        yield from range(3)
        if sys.argv[1] == "sampler":
            raise FileNotFoundError(2, "gone", "index.json")
        yield from range(3, 100)

loader = DataLoader(Numbers(), None, sampler=Order(), num_workers=2, **forked)
numbers, kept = watched(loader), None
try:
    next(numbers)
    if sys.argv[1] == "interrupt":
        numbers.throw(KeyboardInterrupt())
except BaseException as error:
    kept = error
numbers.close()
print(type(kept).__name__, len(multiprocessing.active_children()))
"""


@pytest.mark.parametrize(
    ("how", "raised"),
    [("sampler", "FileNotFoundError"), ("interrupt", "KeyboardInterrupt"), ("close", "NoneType")],
)
def test_whoever_leaves_early_leaves_no_process_behind(how, raised):
    """Not even processes that hang, whom Python's exit would wait for."""
    command = [sys.executable, "-c", LEFT_EARLY, how]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{raised} 0\n"), ended.stderr


def test_a_death_while_indexing_is_one_line():
    with pytest.raises(DataError, match="indexing: a process died, perhaps out of memory"):
        for_each(os._exit, [(1,), (1,)], workers=2, threads=False, label="indexing")
