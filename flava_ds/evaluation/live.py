"""Evaluates a model during training, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from torch import nn

from flava_ds.config import Config
from flava_ds.config.evaluation import EVALUATED
from flava_ds.errors import UserError
from flava_ds.evaluation import registry
from flava_ds.evaluation.frozen_model import Described, FrozenModel
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.pixels import pixel_model
from flava_ds.evaluation.protocols import Evaluator, ImageFeatures, Score
from flava_ds.evaluation.runner import FoundData, check_needs, find_all
from flava_ds.evaluation.shares import Share
from flava_ds.evaluation.task_scores import scores_of
from flava_ds.ranks.distributed import World, together


class LiveEvaluation:
    """Runs the configured tasks on the current weights when called.

    Every rank encodes its share of the samples and computes every number, so no rank waits for another's
    work. An error on one rank ends the evaluation on all.
    """

    def __init__(
        self,
        config: Config,
        module: nn.Module,
        world: World,
        lend: Callable[[], AbstractContextManager[nn.Module]],
    ) -> None:
        """Finds tasks and data, and checks the tasks' needs, on all ranks together.

        `lend` provides a model that needs no other rank.

        Raises: UserError on all ranks if one of them lacks something.
        """
        self.config, self.world, self._lend = config, world, lend
        with together(world):
            self.tasks, self.data = find_tasks(config, module)

    def __call__(self) -> dict[str, dict[str, Score]]:
        """Returns task -> number -> score, equal on all ranks. Errors are raised on all ranks too."""
        with self._lend() as module:
            model = _frozen(self.config, module, Share(self.world))
            return self._evaluated(model, self.tasks)

    def of_pixels(self) -> dict[str, dict[str, Score]]:
        """Returns what raw pixels reach in the tasks that read image features alone, as the call does."""
        model = pixel_model(self.config.model.load_tokenizer(self.config), Share(self.world))
        return self._evaluated(model, [task for task in self.tasks if task.needs == (ImageFeatures,)])

    def _evaluated(self, model: FrozenModel, tasks: Sequence[Evaluator]) -> dict[str, dict[str, Score]]:
        """Runs tasks without runner.evaluate's facts, which every rank would stat all pictures for."""
        share = Share(self.world)
        return {
            task.name: share.together(partial(scores_of, task, model, self.data[task.name])) for task in tasks
        }


def find_tasks(config: Config, module: nn.Module) -> tuple[list[Evaluator], dict[str, FoundData]]:
    """Returns the configured tasks and their data; `module` may be on the meta device.

    Raises: UserError when a task, its data, or what it needs of the model is missing, or if
    checkpoint.best_metric names a task that does not run.
    """
    settings = config.evaluation
    root = Path(settings.data_root or ".")
    tasks = registry.find(settings.tasks, root)
    data = find_all(tasks, root, limit=settings.limit)
    check_needs(tasks, _frozen(config, module))
    name, known = config.checkpoint.best_metric, [task.name for task in tasks]
    if name.startswith(EVALUATED) and name.split("/")[1] not in known:
        raise UserError(f"checkpoint.best_metric is '{name}', but the tasks that run are {', '.join(known)}")
    return tasks, data


def _frozen(config: Config, module: nn.Module, share: Share | None = None) -> FrozenModel:
    return freeze(config, module, Described(config.name, config.model.type), share)
