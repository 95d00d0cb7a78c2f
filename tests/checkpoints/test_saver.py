"""When a run saves, what it keeps, and where: the toy's whole loop with checkpoints by steps, by minutes, by
a logged value, and in object storage.
"""

from __future__ import annotations

import dataclasses
import signal

import pytest
import torch
from checkpoint_helpers import UNEVENTFUL
from real_runs import steps_of
from test_engine import everything
from test_trainer import ToyLoader
from toy import Toy, toy_config

from flava_ds.build import build_trainer
from flava_ds.checkpoints import checkpoint, files
from flava_ds.checkpoints.contents import read_state
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.saver import HostCopy, Saver, Status, _Task
from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.errors import CheckpointError
from flava_ds.ranks.distributed import start
from flava_ds.ranks.lock_files import NAME
from flava_ds.training.engine import Engine
from flava_ds.training.trainer import Trainer

STEPS = 12


class StoppingLoader(ToyLoader):
    """Yields steps from `first` on; before `stop_at` the process is asked to stop."""

    def __init__(self, world, first: int, stop_at: int | None) -> None:
        super().__init__(world, range(first, STEPS), 1)
        self.stop_at = stop_at

    def __iter__(self):
        for step, batches in zip(self.steps, super().__iter__(), strict=True):
            if step == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
            yield batches


def trainer_of(config: Config, stop_at: int | None = None) -> Trainer:
    """A run of the toy, at its latest checkpoint when there is one."""
    world = start(60)
    checkpoint.prepare(config, world)
    module = Toy()
    engine = Engine(module, config, world)
    state = checkpoint.resume(engine, config)
    first = state[0] if state else 0
    trainer = build_trainer(config, engine, StoppingLoader(world, first, stop_at), first)
    return trainer


def fit(folder: str, cases: dict[str, dict]) -> dict[str, dict]:
    """On every rank: fits a run per case; returns the steps of its checkpoints, their states, and its log."""
    results = {}
    for name, rules in cases.items():
        logging = LoggingConfig(run_directory=folder, every_steps=1, tensorboard=False)
        config = dataclasses.replace(
            toy_config("zero1"), name=name, checkpoint=CheckpointConfig(**rules), logging=logging
        )
        assert trainer_of(config).fit() == 0
        place = files.place_of(config.run_path, config)
        names = files.complete(place)
        results[name] = {
            "steps": [files.step_of(n) for n in names],
            "states": [read_state(place / n) for n in names],
            "log": steps_of(config.run_path),
            "at": str(place),
        }
    return results


@pytest.mark.distributed
def test_saves_are_due_by_steps_and_minutes_and_kept_by_their_rules(run_ranks, tmp_path):
    cases = {
        "steps": {"every_steps": 5, "keep_last": 9},
        "minutes": {"every_steps": 0, "every_minutes": 1e-9, "keep_last": 99, "asynchronous": False},
        "never": {"every_steps": 0, "every_minutes": 1e6},
        "best": {
            "every_steps": 1,
            "keep_last": 1,
            "keep_best": 2,
            "keep_every": 6,
            "best_metric": "loss/itm",
        },
    }
    results = run_ranks(fit, 2, str(tmp_path), cases)
    assert {name: result["steps"] for name, result in results[0].items()} == {
        name: result["steps"] for name, result in results[1].items()
    }
    found = results[0]
    assert (
        found["steps"]["steps"] == [5, 10, 12]
        and found["minutes"]["steps"] == list(range(1, 13))
        and found["never"]["steps"] == [12]
    )
    latest, values = None, {}
    for line in found["best"]["log"]:
        latest = line.get("loss/itm", latest)
        if latest is not None:
            values[line["step"] + 1] = latest
    best = sorted(values, key=lambda step: (values[step], step))[:2]
    assert found["best"]["steps"] == sorted({*best, 6, 12}) and len(set(values.values())) > 2
    assert {state["step"]: state["metric"]["value"] for state in found["best"]["states"]} == {
        step: values[step] for step in found["best"]["steps"]
    }


def save_again_after_a_rollback(folder: str) -> list[list[str]]:
    """The checkpoints that are kept after each save: the third one repeats the second one's step."""
    rules = CheckpointConfig(keep_last=1, keep_best=2, best_metric="loss/itm")
    config = dataclasses.replace(
        toy_config("zero1"), checkpoint=rules, logging=LoggingConfig(run_directory=folder)
    )
    world = start(60)
    checkpoint.prepare(config, world)
    saver, kept = Saver(Engine(Toy(), config, world), config), []
    for step, value in ((1, 2.0), (2, 1.0), (2, 9.0), (3, 5.0), (4, 6.0)):
        if value == 9.0:
            files.return_to(saver.place, saver.place / files.name_of(1))
        saver.save(
            step, {}, {"name": rules.best_metric, "value": value, "step": step - 1, "higher_is_better": False}
        )
        saver.finish()
        kept.append([files.step_of(name) for name in files.complete(saver.place)])
    return kept


def test_a_step_that_is_saved_again_counts_by_its_new_number(run_ranks, tmp_path):
    """Otherwise the diverged one's loss would keep it as the best."""
    assert run_ranks(save_again_after_a_rollback, 1, str(tmp_path)) == [
        [[1], [1, 2], [1, 2], [1, 3], [1, 3, 4]]
    ]


def save_while_it_diverges(folder: str) -> list[int]:
    """The checkpoints that are left when the loss spikes after the first, and no rollback is asked for."""
    config = toy_config("zero1", spike_factor=5.0)
    config = dataclasses.replace(
        config, checkpoint=CheckpointConfig(keep_last=1), logging=LoggingConfig(run_directory=folder)
    )
    world = start(60)
    checkpoint.prepare(config, world)
    saver = Saver(Engine(Toy(), config, world), config)
    for step in (1, 2, 3):
        saver.save(step, {}, spikes={**UNEVENTFUL["spikes"], "calm": step == 1})
        saver.finish()
    return [files.step_of(name) for name in files.complete(saver.place)]


def test_the_last_good_one_outlives_a_divergence_that_ends_the_run(run_ranks, tmp_path):
    assert run_ranks(save_while_it_diverges, 1, str(tmp_path)) == [[1, 3]]


def stop_and_go_on(folder: str) -> tuple[list[str], bool, bool]:
    """What lies in object storage, whether anything of it lies in the run's folder, and whether a resumed run
    ends as one that went through.
    """
    logging = LoggingConfig(run_directory=folder, every_steps=6, tensorboard=False)
    rules = CheckpointConfig(every_steps=4, keep_last=1, directory="memory://bucket/runs")
    config = dataclasses.replace(toy_config("zero1"), checkpoint=rules, logging=logging)
    stopped = dataclasses.replace(config, name="stopped")
    assert trainer_of(stopped, stop_at=6).fit() == 128 + signal.SIGTERM
    second = trainer_of(stopped)
    assert second.first_step == 7 and second.fit() == 0
    through = trainer_of(dataclasses.replace(config, name="through"))
    through.fit()
    ended, expected = everything(second.engine), everything(through.engine)
    same = all(torch.equal(ended[name], expected[name]) for name in expected)
    place = files.place_of(stopped.run_path, stopped)
    return place.names(), (stopped.run_path / "checkpoints").exists(), same


def test_checkpoints_in_object_storage_go_on(run_ranks, tmp_path):
    (result,) = run_ranks(stop_and_go_on, 1, str(tmp_path))
    assert result == (["latest", NAME, "step_00000012"], False, True)


def test_host_copies_are_used_again_and_follow_a_change_of_shape():
    host, source = HostCopy(pinned=False), {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.uint8)}
    first = host.take("weights", source)
    source["a"] += 1
    assert torch.equal(first["a"], torch.ones(3))
    second = host.take("weights", source)
    assert second["a"].data_ptr() == first["a"].data_ptr() and torch.equal(second["a"], torch.full((3,), 2.0))
    third = host.take("weights", {"a": torch.zeros(5), "b": source["b"]})
    assert third["a"].shape == (5,) and third["b"].data_ptr() == first["b"].data_ptr()


@pytest.mark.parametrize(
    ("where", "problem", "said"),
    [
        ("runs/a", OSError(28, "No space left"), "runs/a cannot be written (.*No space left); make room"),
        ("s3://a", OSError("gone"), "s3://a cannot be written (gone); check the storage and the network"),
        ("runs/a", RuntimeError("a bug"), "runs/a was not written (RuntimeError: a bug); run again with"),
        ("s3://a", MemoryError(), "s3://a was not written (MemoryError); run again with --debug"),
        ("runs/a", OSError(), "runs/a cannot be written (OSError); make room or mend the disk"),
        ("runs/a", CheckpointError("said already"), "said already"),
    ],
)
def test_a_disk_is_to_blame_for_what_the_system_says_alone(where, problem, said):
    def write():
        raise problem

    task = _Task(Place(where), Status.WRITTEN)
    task.begin(write)
    task.join()
    assert task.status == Status.FAILED
    with pytest.raises(CheckpointError, match=said.replace("(", r"\(").replace(")", r"\)")) as told:
        raise task.error
    assert ("disk" in str(told.value)) == ("make room" in said)
