"""Tasks on a model that is being trained, by all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from torch import nn

from flava_ds.config import Config
from flava_ds.errors import UserError
from flava_ds.evaluation import registry
from flava_ds.evaluation.frozen_model import Described, FrozenModel
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.runner import check_needs, evaluate, find_all
from flava_ds.evaluation.shares import AmongRanks
from flava_ds.ranks.distributed import World, raise_together, together


class LiveEvaluation:
    """Calls to it run the configured tasks on the weights of the moment.

    Every rank encodes its share of the samples and computes every number, so none waits for another's work,
    and an error that one meets ends all.
    """

    def __init__(
        self,
        config: Config,
        module: nn.Module,
        world: World,
        lend: Callable[[], AbstractContextManager[nn.Module]],
    ) -> None:
        """Finds tasks and data, and checks what the tasks need; all ranks together. `lend` gives a model that
        computes alone.

        Raises: UserError on all ranks when one of them lacks something.
        """
        self.config, self.world, self._lend = config, world, lend
        settings = config.evaluation
        with together(world):
            self.tasks = registry.find(settings.tasks)
            self.data = find_all(self.tasks, Path(settings.data_root or "."), limit=settings.limit)
            check_needs(self.tasks, self._frozen(module))
            self._check_best_metric()

    def __call__(self) -> dict[str, dict[str, Score]]:
        """Returns task -> number -> score, the same on all ranks. Raises: UserError or RuntimeError on all
        ranks.
        """
        with self._lend() as module:
            model = self._frozen(module)
            return {
                task.name: self._together(
                    lambda task=task: evaluate([task], model, self.data)[task.name].scores
                )
                for task in self.tasks
            }

    def _frozen(self, module: nn.Module) -> FrozenModel:
        return freeze(
            self.config, module, Described(self.config.name, self.config.model.type), AmongRanks(self.world)
        )

    def _together(self, run: Callable[[], dict[str, Score]]) -> dict[str, Score]:
        """Runs a task. The others meet an error of this rank where they next wait for it: in the task, or at
        its end.
        """
        try:
            scores = run()
        except Exception as problem:
            if getattr(problem, "on_all_ranks", False):
                raise
            told = (
                problem
                if isinstance(problem, UserError)
                else RuntimeError(f"rank {self.world.rank}: {type(problem).__name__}: {problem}")
            )
            raise_together(self.world, told)
            raise
        raise_together(self.world, None)
        return scores

    def _check_best_metric(self) -> None:
        """Raises UserError when checkpoints are to be kept by a task that does not run."""
        name = self.config.checkpoint.best_metric
        known = [task.name for task in self.tasks]
        if name.startswith("evaluation/") and name.split("/")[1] not in known:
            raise UserError(
                f"checkpoint.best_metric is '{name}', but the tasks that run are {', '.join(known)}"
            )
