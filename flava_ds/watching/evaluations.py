"""Runs tasks while a model trains, and hands their numbers to the log and to the keeping of checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from flava_ds.config import EvaluationConfig
from flava_ds.ranks.distributed import World, log
from flava_ds.training.watcher import Update, Watcher

PREFIX = "evaluation/"
SECONDS = "evaluation_seconds"
"""The log's key for how long training stood."""


class Score(Protocol):
    """What this needs to know of a task's number."""

    @property
    def value(self) -> float: ...

    @property
    def higher_is_better(self) -> bool: ...


class EvaluationWatcher(Watcher):
    """Evaluates after every n-th step and after the last one. All ranks call its methods together, after the
    same steps.
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
        """`evaluate` runs the tasks on the live model, all ranks together: task -> number -> score, the same
        on all ranks. `add_numbers` puts fields into the next log record; time inside `paused` is left out of
        rates."""
        self.config, self.total_steps, self.world = config, total_steps, world
        self._evaluate, self._add_numbers, self._paused = evaluate, add_numbers, paused
        self._latest: dict[str, Score] = {}
        self._step = -1

    def after_update(self, update: Update) -> None:
        """Evaluates when it is time, before the log line of the step is written."""
        step, made, every = update.step, update.step + 1, self.config.every_steps
        if not every or (made % every and made != self.total_steps):
            return
        begun = time.perf_counter()
        with self._paused():
            results = self._evaluate()
        seconds = time.perf_counter() - begun
        self._latest = {
            f"{PREFIX}{task}/{name}": score
            for task, scores in results.items()
            for name, score in scores.items()
        }
        self._step = step
        self._add_numbers({name: score.value for name, score in self._latest.items()} | {SECONDS: seconds})
        if self.world.is_main:
            told = ", ".join(
                f"{name.removeprefix(PREFIX)} {score.value:.4g}" for name, score in self._latest.items()
            )
            log.info("evaluated after step %d; training stood for %.1f s: %s", made, seconds, told)

    def metric(self, name: str) -> dict[str, Any] | None:
        """Returns what a checkpoint keeps of a number that checkpoint.best_metric names; None for another
        number, or when no evaluation has brought it."""
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
        """Forgets an evaluation of a step that will be made again."""
        if self._step >= first_step:
            self._latest, self._step = {}, -1
