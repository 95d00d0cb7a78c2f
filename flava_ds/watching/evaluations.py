"""Runs evaluation tasks during training and passes their numbers to the log and to checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from flava_ds.config import EvaluationConfig
from flava_ds.config.evaluation import EVALUATED
from flava_ds.errors import UserError, did_you_mean
from flava_ds.ranks.distributed import World, log
from flava_ds.training.watcher import Update, Watcher
from flava_ds.watching.run_log import LOWER

SECONDS = "evaluation_seconds"
"""Log field: seconds that training was paused."""
REFERENCE = "evaluation_reference/"
"""How the names of the numbers begin that the tasks' numbers are compared with:
evaluation_reference/<of>/<task>/<number>."""


class Score(Protocol):
    """What the watcher needs to know of a task's number."""

    @property
    def value(self) -> float: ...

    @property
    def higher_is_better(self) -> bool: ...


Results = Mapping[str, Mapping[str, Score]]
"""Task -> number -> score."""


class EvaluationWatcher(Watcher):
    """Evaluates after every n-th step and after the last one, and if asked once before the first, together
    with what raw pixels reach.

    All ranks call its methods together, after the same steps.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        total_steps: int,
        world: World,
        evaluate: Callable[[], Results],
        add_numbers: Callable[[dict[str, float | str]], None],
        paused: Callable[[], AbstractContextManager[None]],
        of_pixels: Callable[[], Results] = dict,
        best_metric: str = "",
    ) -> None:
        """`evaluate` runs the tasks on the live model on all ranks: task -> number -> score, equal on all;
        `of_pixels` those that can run on raw pixels on these.

        `add_numbers` adds fields to the next log record; time inside `paused` does not count in rates.
        `best_metric` is checkpoint.best_metric.
        """
        self.config, self.total_steps, self.world = config, total_steps, world
        self._evaluate, self._add_numbers, self._paused = evaluate, add_numbers, paused
        self._of_pixels, self._referred, self._best_metric = of_pixels, False, best_metric
        self._latest: dict[str, Score] = {}
        self._step = -1

    def after_update(self, update: Update) -> None:
        """Evaluates if due, before the step's record is written; if it cannot, on all ranks, that is the
        watcher's failure. Raises: UserError of this rank alone.
        """
        step, made, every = update.step, update.step + 1, self.config.every_steps
        if not every or (made % every and made != self.total_steps):
            return
        begun = time.perf_counter()
        try:
            with self._paused():
                results = self._evaluate()
        except UserError as error:
            if self.world.size > 1 and not error.on_all_ranks:
                raise
            self.failure = error
            return
        seconds = time.perf_counter() - begun
        self._latest, self._step = _named(EVALUATED, results), step
        lower = [name for name, score in self._latest.items() if not score.higher_is_better]
        found: dict[str, float | str] = {name: score.value for name, score in self._latest.items()}
        self._add_numbers(found | {SECONDS: seconds} | ({LOWER: ",".join(lower)} if lower else {}))
        if self.world.is_main:
            told = _told(EVALUATED, self._latest)
            log.info("evaluated after step %d; training was paused for %.1f s: %s", made, seconds, told)
        self.failure = self._unknown_best(results)

    def _unknown_best(self, results: Results) -> UserError | None:
        """Returns the error if checkpoint.best_metric is a number of the tasks that they have not."""
        name, numbers = self._best_metric, _named(EVALUATED, results)
        if not name.startswith(EVALUATED) or name in numbers:
            return None
        task = name.rpartition("/")[0]
        known = [other for other in numbers if other.rpartition("/")[0] == task]
        there = f"of that task there are {', '.join(known) or 'none'}{did_you_mean(name, known)}"
        return UserError(f"checkpoint.best_metric is '{name}'; {there}").everywhere()

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
        """Forgets the evaluation of a step that will be repeated; before the first one, evaluates what later
        numbers are compared with. Raises: UserError if checkpoint.best_metric is none of the tasks' numbers.
        """
        self.failure = None
        if self._step >= first_step:
            self._latest, self._step = {}, -1
        asked = self.config.every_steps and self.config.references
        if asked and first_step == 0 and not self._referred:
            self._refer()

    def _refer(self) -> None:
        self._referred, begun = True, time.perf_counter()
        with self._paused():
            found = {"start": self._evaluate(), "pixels": self._of_pixels()}
        if (error := self._unknown_best(found["start"])) is not None:
            raise error
        seconds = time.perf_counter() - begun
        for of, results in found.items():
            head = f"{REFERENCE}{of}/"
            numbers = _named(head, results)
            self._add_numbers({name: score.value for name, score in numbers.items()})
            if self.world.is_main and numbers:
                what = {"start": "the model before its first step", "pixels": "raw pixels"}[of]
                log.info("to compare evaluations with, %s: %s", what, _told(head, numbers))
        if self.world.is_main:
            log.info("evaluated both before the first step, within %.1f s", seconds)


def _named(head: str, results: Results) -> dict[str, Score]:
    """Returns the numbers by the names of their log fields."""
    return {
        f"{head}{task}/{name}": score for task, scores in results.items() for name, score in scores.items()
    }


def _told(head: str, numbers: Mapping[str, Score]) -> str:
    return ", ".join(f"{name.removeprefix(head)} {score.value:.4g}" for name, score in numbers.items())
