"""A rank that is stopped, killed or busy is named by the others, whichever rank it is; real processes run the
real trainer's entry point.
"""

import dataclasses
import re
import signal
import socket
import time

import pytest
from real_runs import Job, real_config, steps_of

from flava_ds.config import CheckpointConfig, Config, EngineConfig

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
