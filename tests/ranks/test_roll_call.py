"""A rank that is stopped, killed or busy is named by the others, whichever rank it is; real processes run the
real trainer's entry point.
"""

import dataclasses
import functools
import re
import signal
import socket
import threading
import time

import pytest
import torch.distributed as dist
from real_runs import Job, real_config, steps_of

from flava_ds.config import CheckpointConfig, Config, EngineConfig
from flava_ds.ranks import distributed, roll_call
from flava_ds.ranks.distributed import gather_objects, start

HOST = re.escape(f"(host {socket.gethostname()})")
TIMEOUT_S = 6

pytestmark = pytest.mark.distributed


def long_run(folder, ranks: int) -> Config:
    """A run that does not end by itself while a test looks on."""
    config = real_config(
        folder,
        checkpoint=CheckpointConfig(every_steps=0),
        engine=EngineConfig(communication_timeout_s=TIMEOUT_S),
    )
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, total_steps=1_000_000, global_batch_size=4 * ranks),
    )


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_once_and_ended(tmp_path):
    """Two of three ranks notice; the faults of test_trainer_faults.py have rank 0, which keeps the store, and
    a killed rank.
    """
    config = long_run(tmp_path, 3)
    job = Job(config, 3)
    try:
        assert job.wait_until(lambda: len(steps_of(config.run_path)) > 3), job.said()
        job.signal(signal.SIGSTOP, 1)
        statuses = job.wait(90)
    finally:
        job.kill()
    (line,) = job.errors()
    hung = f"has not answered for {TIMEOUT_S} s in step [0-9]+: it hangs or its machine is gone"
    assert re.search(f"error: rank 1 {HOST} {hung}", line) and "Traceback" not in job.said(), job.said()
    assert statuses == [1, -signal.SIGKILL, 1], "one that hangs here must not keep its launcher waiting"


def be_late(rank: int) -> None:
    """Lets rank 1 come to its third step long after the others."""
    from flava_ds.training.trainer import Trainer

    if rank == 1:
        original = Trainer.train_step

        def take_long(self, step, *rest, **named):
            if step == 2:
                time.sleep(4 * TIMEOUT_S)
            return original(self, step, *rest, **named)

        Trainer.train_step = take_long


@pytest.mark.slow
def test_a_rank_that_is_busy_is_named_with_the_place_where_it_is(tmp_path):
    job = Job(long_run(tmp_path, 2), 2, be_late)
    try:
        job.wait(90)
    finally:
        job.kill()
    line = job.errors()[0]
    assert (
        f"ranks have waited for {TIMEOUT_S} s for others in step 2, though all processes are alive: rank 1 "
        in line
    ), job.said()
    assert "training/test_roll_call.py" in line or "training/trainer.py" in line, line
    assert "raise engine.communication_timeout_s" in line and "Traceback" not in job.said()


def stop_at_once(asked: int, rank: int) -> None:
    """One rank is asked to stop for the second time in its third step."""
    from flava_ds.ranks import stop_signals
    from flava_ds.training.trainer import Trainer

    original = Trainer.train_step

    def ask_twice(self, step, *rest, **named):
        if step == 2:
            stop_signals.REPEATED_SIGNAL_S = -1.0
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
        return original(self, step, *rest, **named)

    if rank == asked:
        Trainer.train_step = ask_twice


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_rank_that_a_second_signal_ends_is_not_taken_for_killed(tmp_path, asked):
    job = Job(long_run(tmp_path, 2), 2, functools.partial(stop_at_once, asked))
    try:
        statuses = job.wait(90)
    finally:
        job.kill()
    assert statuses[asked] == -signal.SIGTERM and statuses[1 - asked] == 128 + signal.SIGTERM
    assert not job.errors() and job.said().count("stopped at once, without a checkpoint") == 1, job.said()


class CountingStore:
    """A real store that counts requests; when asked, the `answers` of other ranks arrive in it."""

    def __init__(self, store: dist.Store, answers: dict[int, str]):
        self.store, self.answers, self.requests = store, answers, 0

    def __getattr__(self, method: str):
        def request(*arguments):
            self.requests += 1
            found = getattr(self.store, method)(*arguments)
            if method == "set" and arguments[0] == roll_call.ASKED:
                for rank, position in self.answers.items():
                    self.store.append(roll_call.ANSWERS, roll_call._answered(rank, position))
            return found

        return request


@pytest.fixture(params=["tcp", "tcp behind a prefix", "hash"])
def store(request) -> dist.Store:
    """torchrun's store has a prefix; a process without a launcher has a hash store."""
    if request.param == "hash":
        return dist.HashStore()
    tcp = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return tcp if request.param == "tcp" else dist.PrefixStore("default_pg", tcp)


@pytest.mark.parametrize("missing", [[], [0], [300], list(range(1, 512, 2))])
def test_a_roll_call_takes_the_store_as_few_requests_for_512_ranks_as_for_one(monkeypatch, store, missing):
    """The store serves one request at a time, and all ranks ask at once: with a request for each rank, it was
    late with its answers, and they took rank 0 for the one that hangs.
    """
    asking = 511 if 511 not in missing else 510
    monkeypatch.setattr(roll_call, "_peers", [roll_call.Peer.here()] * 512)
    monkeypatch.setattr(roll_call, "ANSWER_S", 0.4)
    busy = {rank: f"data/loader.py:{rank} in draw" for rank in range(512) if rank % 7 == 3}
    answers = {rank: busy.get(rank, "") for rank in reversed(range(512)) if rank not in (*missing, asking)}
    counted = CountingStore(store, answers)
    positions, seconds = roll_call._ask(counted, asking, "600")
    assert positions == answers | {asking: ""} and seconds == "600"
    assert list(positions) == sorted(positions), "a message names the first of them"
    assert counted.requests <= 10, f"{counted.requests} requests"


@pytest.mark.parametrize(
    "words",
    [
        "Timed out waiting 8000ms for recv operation to complete",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, Timeout(ms)=8000) ran for 8001 ms",
        "wait timeout after 8000ms, keys: /default_pg/0//cpu//0/0",
    ],
)
def test_the_seconds_of_a_timeout_are_those_of_whoever_tells_it(monkeypatch, words):
    store = dist.HashStore()
    monkeypatch.setattr(roll_call, "_peers", [dataclasses.replace(roll_call.Peer.here(), pid=0)] * 2)
    monkeypatch.setattr(roll_call, "ANSWER_S", 0.1)
    monkeypatch.setattr(roll_call, "_end_hung", lambda peers: None)
    monkeypatch.setattr(roll_call.signal, "signal", lambda *_: None)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    assert "rank 1" in (said := roll_call.explain(RuntimeError(words))) and "answered for 8 s" in said


@pytest.fixture
def kept_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield list(before)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_to_stop_does_not_end_the_question(monkeypatch, kept_signals):
    def ask(*_):
        for number in kept_signals:
            signal.raise_signal(number)
        return {0: ""}, None

    monkeypatch.setattr(roll_call, "_peers", [roll_call.Peer.here()] * 2)
    monkeypatch.setattr(roll_call, "_ask", ask)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", dist.HashStore)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    said = roll_call.explain(RuntimeError("Connection reset by peer"))
    assert said is not None and said.startswith("rank 1 ") and "ended without a word" in said


def test_a_rank_answers_once_asked_and_what_it_says_last_counts():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.append(roll_call.ANSWERS, roll_call._answered(3, "data/loader.py:7 in draw"))
    thread = threading.Thread(target=roll_call._answer, args=(store.clone(), 1))
    thread.start()
    store.append(roll_call.ANSWERS, roll_call._answered(3, ""))  # it has gone on, and waits for others now
    store.set(roll_call.ASKED, "1")
    thread.join(30)
    answers = roll_call._answers(store.get(roll_call.ANSWERS))
    assert list(answers) == [1, 3] and answers[3] == ""


def know_the_first_end() -> tuple[bool, tuple[bool, int]]:
    """Rank 0 ends with an error; returns what rank 1 says without the store."""
    world = start(30)
    roll_call.begin(world)
    if world.rank == 0:
        distributed.agree_on_end(2)
    deadline = time.monotonic() + 20
    while not distributed.has_ended() and time.monotonic() < deadline:
        time.sleep(0.01)
    gather_objects(world, None)
    dist.distributed_c10d._get_default_store = gone
    of_store = "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?"
    errors = [RuntimeError("Connection closed by peer"), dist.DistNetworkError(of_store)]
    said = [roll_call.explain(error) for error in errors] == ["", ""]
    return said, distributed.agree_on_end(1)


def gone():
    raise RuntimeError("the store is gone")


def test_a_first_end_is_known_without_the_store(run_ranks):
    assert run_ranks(know_the_first_end, 2) == [(True, (True, 2)), (True, (False, 2))]
