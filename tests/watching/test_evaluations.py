"""Evaluations run when they are due, reach the log, and know which way is better."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from toy import update_of

from flava_ds.config import EvaluationConfig
from flava_ds.errors import UserError
from flava_ds.evaluation.protocols import Score
from flava_ds.watching.evaluations import EvaluationWatcher
from flava_ds.watching.run_log import LOWER, RunLog, lower_in, lower_is_better

SETTINGS = EvaluationConfig(every_steps=4, tasks=("a",), data_root="x")


class Run:
    """A watcher with everything that it is given."""

    def __init__(self, config=SETTINGS, total_steps=10, best_metric=""):
        self.steps, self.logged, self.open = [], [], False
        world = SimpleNamespace(is_main=True, size=2)
        hooks = (self.evaluate, self.logged.append, self.paused, self.of_pixels)
        self.watcher = EvaluationWatcher(config, total_steps, world, *hooks, best_metric)
        self.step = -1

    def evaluate(self):
        assert self.open, "rates would count the time of an evaluation"
        self.steps.append(self.step)
        return {
            "a": {
                "accuracy": Score(float(self.step), 10, 0.1),
                "loss": Score(1.0, 10, 0.1, "nats", higher_is_better=False),
            }
        }

    def of_pixels(self):
        assert self.open
        return {"a": {"accuracy": Score(0.6, 10, 0.1)}}

    @contextmanager
    def paused(self):
        self.open = True
        yield
        self.open = False

    def make(self, steps):
        for self.step in steps:
            self.watcher.after_update(update_of(step=self.step))
            if self.watcher.failure is not None:
                raise self.watcher.failure


def test_every_so_many_steps_and_after_the_last():
    run = Run()
    run.make(range(10))
    assert run.steps == [3, 7, 9]
    never = Run(EvaluationConfig())
    never.make(range(10))
    assert never.steps == [] and never.logged == []
    both = Run(total_steps=8)
    both.make(range(8))
    assert both.steps == [3, 7]  # the last step once


def test_numbers_are_log_fields_with_the_seconds():
    run = Run()
    run.make(range(4))
    [numbers] = run.logged
    assert numbers.pop("evaluation_seconds") >= 0
    assert lower_in(numbers) == lower_is_better(RunLog({}, [{}, numbers])) == ["evaluation/a/loss"]
    del numbers[LOWER]
    assert numbers == {"evaluation/a/accuracy": 3.0, "evaluation/a/loss": 1.0}


def test_a_best_metric_that_no_task_has_ends_the_run_at_the_first_evaluation():
    Run(best_metric="evaluation/a/loss").make(range(4))
    Run(best_metric="loss/mlm").make(range(4))
    run = Run(best_metric="evaluation/a/acuracy")
    said = (
        "'evaluation/a/acuracy'; of that task there are evaluation/a/accuracy, evaluation/a/loss; "
        r"did you mean 'evaluation/a/accuracy'\?"
    )
    with pytest.raises(UserError, match=said):
        run.make(range(10))
    assert run.steps == [3] and len(run.logged) == 1, "what was measured is not lost"
    early = Run(dataclasses.replace(SETTINGS, references=True), best_metric="evaluation/a/acuracy")
    with pytest.raises(UserError, match=said):
        early.watcher.on_start(0)


def test_a_metric_knows_its_step_and_which_way_is_better():
    run = Run()
    assert run.watcher.metric("evaluation/a/accuracy") is None
    run.make(range(9))
    found = run.watcher.metric("evaluation/a/accuracy")
    assert found == {"name": "evaluation/a/accuracy", "value": 7.0, "step": 7, "higher_is_better": True}
    assert run.watcher.metric("evaluation/a/loss")["higher_is_better"] is False
    assert run.watcher.metric("loss/mlm") is None


def test_going_back_forgets_what_was_measured_since():
    run = Run()
    run.make(range(4))
    run.watcher.on_start(4)
    assert run.watcher.metric("evaluation/a/accuracy")["step"] == 3
    run.watcher.on_start(3)
    assert run.watcher.metric("evaluation/a/accuracy") is None


def test_what_numbers_are_compared_with_is_measured_once_before_the_first_step():
    run = Run(dataclasses.replace(SETTINGS, references=True))
    for first_step in (0, 4, 0):  # a start, and two returns to earlier steps
        run.watcher.on_start(first_step)
    assert run.steps == [-1] and run.logged == [
        {"evaluation_reference/start/a/accuracy": -1.0, "evaluation_reference/start/a/loss": 1.0},
        {"evaluation_reference/pixels/a/accuracy": 0.6},
    ]
    assert run.watcher.metric("evaluation/a/accuracy") is None  # never the best checkpoint's number
    for config, first_step in ((SETTINGS, 0), (dataclasses.replace(SETTINGS, references=True), 4)):
        other = Run(config)
        other.watcher.on_start(first_step)
        assert other.logged == []
