"""A run that diverges goes back to a good checkpoint and jumps the data: from there on its curve is that of a
run that never had them.
"""

import dataclasses
import json
import signal

import pytest
from real_runs import Job, curve, real_config, steps_of

from flava_ds.checkpoints.contents import read_state
from flava_ds.checkpoints.files import complete, latest, place_of
from flava_ds.config import CheckpointConfig, Config
from flava_ds.data.loader import StepLoader

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 22
BAD = range(14, 17)
"""Steps whose data spoil a run; the third spike in a row is found at step 16, and the checkpoint of step 12
is the last good one.
"""


def spoil(rank: int, factor: float = 50.0, bad: range = BAD) -> None:
    """Multiplies the losses that come from the bad data."""
    from flava_ds.families.flava.task import FlavaTask

    drawn, batches, forward = [0], StepLoader.__iter__, FlavaTask.step

    def iterate(self):
        for step, micro_batches in enumerate(batches(self), start=self.start_step):
            drawn[0] = self._drawn(step)
            yield micro_batches

    def lose(self, batch, denominators, *rest):
        output = forward(self, batch, denominators, *rest)
        return (
            dataclasses.replace(output, loss=output.loss * factor)
            if denominators is not None and drawn[0] in bad
            else output
        )

    StepLoader.__iter__, FlavaTask.step = iterate, lose


def spoil_with_nan(rank: int) -> None:
    """Makes the losses that come from the bad data NaN, on one rank."""
    if rank == 1:
        spoil(rank, float("nan"))


def spoil_all_later(rank: int) -> None:
    """Leaves no way around the bad data."""
    spoil(rank, 50.0, range(BAD.start, 1000))


def jump(rank: int) -> None:
    """Begins a run that never has the data of steps 12 to 16."""
    begin = StepLoader.__init__

    def begin_with_jump(self, *arguments, **named):
        begin(self, *arguments, **named)
        self.jumps = [(12, 5)]

    StepLoader.__init__ = begin_with_jump


def run_config(folder, name: str, **training) -> Config:
    """Texts, as the cheapest steps; checkpoints every 4 of them, a look at the losses at every one, and
    more before the bad data than a median needs.
    """
    config = real_config(folder, name=name, checkpoint=CheckpointConfig(every_steps=4, keep_last=1))
    settings = {
        "total_steps": STEPS,
        "spike_factor": 5.0,
        "spike_steps": 3,
        "stop_on_nonfinite": 5,
        "max_rollbacks": 2,
    }
    data = dataclasses.replace(config.data, kind_weights={"pair": 0.0, "image": 0.0, "text": 1.0})
    return dataclasses.replace(
        config, data=data, training=dataclasses.replace(config.training, **(settings | training))
    )


def run(config: Config, prepare=None) -> Job:
    """Runs to the end."""
    job = Job(config, 2, prepare)
    job.wait()
    return job


def jumps_of(config: Config) -> list[list[int]]:
    """Returns the jumps that the latest checkpoint knows."""
    return read_state(latest(place_of(config.run_path)))["data"]["text"]["jumps"]


def test_the_curve_goes_on_as_if_the_data_had_never_been_there(tmp_path):
    """A loss far above its median on all ranks; one that is not finite on a single rank; and a kill after the
    rollback: all are bitwise the same run.
    """
    never = run_config(tmp_path, "never")
    run(never, jump)
    expected = curve(never.run_path)
    assert len(expected) == STEPS

    spiked = run_config(tmp_path, "spiked")
    job = Job(spiked, 2, spoil)
    assert job.wait_until(lambda: latest(place_of(spiked.run_path)) is not None and jumps_of(spiked)), (
        job.said()
    )
    for rank in range(2):
        job.signal(signal.SIGKILL, rank)
    job.wait()
    said = job.said(0)
    assert (
        "for 3 of them in a row it has been more than 5 times its median" in said
        and "back to step 12, skipping the data of the steps since" in said
    ), said
    assert "back to step" not in job.said(1)
    assert run(spiked, spoil).errors() == []
    assert curve(spiked.run_path) == expected and jumps_of(spiked) == [[12, 5]]
    header = json.loads((spiked.run_path / "log.jsonl").read_text().splitlines()[0])
    assert [(back["at"], back["to"]) for back in header["rollbacks"]] == [(16, 12)]
    assert [record["rollbacks"] for record in steps_of(spiked.run_path)] == [0] * 12 + [1] * (STEPS - 12)

    nan = run_config(tmp_path, "nan", spike_factor=0.0, stop_on_nonfinite=3)
    assert run(nan, spoil_with_nan).errors() == []
    assert curve(nan.run_path) == expected


def test_a_run_that_diverges_again_and_again_stops(tmp_path):
    config = run_config(tmp_path, "lost", spike_steps=2)
    job = run(config, spoil_all_later)
    (line,) = job.errors()
    assert (
        "more than 5 times its median" in line
        and "it has gone back 2 times (training.max_rollbacks); lower optimizer.lr or training.gr" in line
        and "goes on from step 12" in line
    )
    assert complete(place_of(config.run_path)) == ["step_00000012"], "later checkpoints are not good ones"
