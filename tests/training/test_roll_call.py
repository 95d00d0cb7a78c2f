"""A rank that is stopped, killed or busy is named by the others, whichever rank it is; real processes run the real trainer's entry point."""

import dataclasses
import os
import re
import signal
import socket
import time

import pytest
from real_runs import Job, real_config, steps_of

from flava_ds.config import CheckpointConfig, Config, EngineConfig
from flava_ds.training import distributed

HOST = re.escape(f"(host {socket.gethostname()})")
TIMEOUT_S = 6

pytestmark = pytest.mark.distributed


def long_run(folder, ranks: int) -> Config:
    """A run that does not end by itself while a test looks on."""
    config = real_config(folder, checkpoint=CheckpointConfig(every_steps=0), engine=EngineConfig(communication_timeout_s=TIMEOUT_S))
    return dataclasses.replace(config, training=dataclasses.replace(config.training, total_steps=1_000_000, global_batch_size=4 * ranks))


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number", "ranks"), [(1, signal.SIGSTOP, 3), (0, signal.SIGSTOP, 2), (1, signal.SIGKILL, 2)])
def test_a_rank_that_does_not_answer_is_named(tmp_path, victim, number, ranks):
    config = long_run(tmp_path, ranks)
    job = Job(config, ranks)
    try:
        assert job.wait_until(lambda: len(steps_of(config.run_path)) > 3), job.said()
        job.signal(number, victim)
        statuses = job.wait(90)
    finally:
        job.kill()
    hung = f"has not answered for {TIMEOUT_S} s in step [0-9]+: it hangs or its machine is gone"
    expected = hung if number == signal.SIGSTOP else "ended without a word in step [0-9]+, perhaps killed for lack of memory"
    (line,) = job.errors()
    assert re.search(f"error: rank {victim} {HOST} {expected}", line) and "Traceback" not in job.said(), job.said()
    assert statuses == [-signal.SIGKILL if rank == victim else 1 for rank in range(ranks)], "one that hangs here must not keep its launcher waiting"


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
    assert f"ranks have waited for {TIMEOUT_S} s for others in step 2, though all processes are alive: rank 1 " in line, job.said()
    assert "training/test_roll_call.py" in line or "training/trainer.py" in line, line
    assert "raise engine.communication_timeout_s" in line and "Traceback" not in job.said()


def test_what_takes_too_long_is_given_up():
    assert distributed.within(5, os.getpid) == os.getpid()
    with pytest.raises(TimeoutError):
        distributed.within(0.05, lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        distributed.within(5, lambda: 1 / 0)
