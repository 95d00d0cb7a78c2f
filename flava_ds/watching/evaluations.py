"""Runs evaluation tasks during training and passes their numbers to the log and to checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from flava_ds.config import EvaluationConfig
from flava_ds.config.evaluation import EVALUATED
from flava_ds.ranks.distributed import World, log
from flava_ds.training.watcher import Update, Watcher

SECONDS = "evaluation_seconds"
"""Log field: seconds that training was paused."""


class Score(Protocol):
    """What the watcher needs to know of a task's number."""

    @property
    def value(self) -> float: ...

    @property
    def higher_is_better(self) -> bool: ...


class EvaluationWatcher(Watcher):
    """Evaluates after every n-th step and after the last one.

    All ranks call its methods together, after the same steps.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        total_steps: int,
        world: World,
        evaluate: Callable[[], Mapping[str, Mapping[str, Score]]],
        add_numbers: Callable[[dict[str, float]], None],
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`evaluate` runs the tasks on the live model on all ranks: task -> number -> score, equal on all.

        `add_numbers` adds fields to the next log record; time inside `paused` does not count in rates.
        """
        self.config, self.total_steps, self.world = config, total_steps, world
        self._evaluate, self._add_numbers, self._paused = evaluate, add_numbers, paused
        self._latest: dict[str, Score] = {}
        self._step = -1

    def after_update(self, update: Update) -> None:
        """Evaluates if due, before the step's record is written."""
        step, made, every = update.step, update.step + 1, self.config.every_steps
        if not every or (made % every and made != self.total_steps):
            return
        begun = time.perf_counter()
        with self._paused():
            results = self._evaluate()
        seconds = time.perf_counter() - begun
        self._latest = {
            f"{EVALUATED}{task}/{name}": score
            for task, scores in results.items()
            for name, score in scores.items()
        }
        self._step = step
        self._add_numbers({name: score.value for name, score in self._latest.items()} | {SECONDS: seconds})
        if self.world.is_main:
            told = ", ".join(
                f"{name.removeprefix(EVALUATED)} {score.value:.4g}" for name, score in self._latest.items()
            )
            log.info("evaluated after step %d; training was paused for %.1f s: %s", made, seconds, told)

    def metric(self, name: str) -> dict[str, Any] | None:
        """Returns what a checkpoint stores of the number called checkpoint.best_metric.

        None if it is another kind of number, or no evaluation has produced it.
        """
        score = self._latest.get(name)
        if score is None:
            return None
        return {
            "name": name,
            "value": score.value,
            "step": self._step,
            "higher_is_better": score.higher_is_better,
        }

    def on_start(self, first_step: int) -> None:
        """Forgets the evaluation of a step that will be repeated."""
        if self._step >= first_step:
            self._latest, self._step = {}, -1
