"""Names parameters that a run updates and that no gradient has reached, as where a model cuts its graph."""

from __future__ import annotations

from collections import Counter

from flava_ds.errors import first_of
from flava_ds.ranks.distributed import gather_objects, log
from flava_ds.training import fragments
from flava_ds.training.engine import Engine
from flava_ds.training.watcher import Watcher

AFTER_STEPS = 16
"""Steps until it looks: enough for draws that are rare, few for a user who waits."""
NAMED = 3


class UnreachedWatch(Watcher):
    """Looks once, through the optimizer's moments, which sum up all gradients; not if it has none."""

    def __init__(self, engine: Engine, total_steps: int) -> None:
        self.engine, self.total_steps, self._due = engine, total_steps, -1

    def on_start(self, first_step: int) -> None:
        self._due = min(first_step + AFTER_STEPS, self.total_steps) - 1

    def after_step(self, step: int, *, stopping: bool) -> None:
        if step != self._due or not self.engine.optimizer.moments:
            return
        zeros = sum((Counter(found) for found in gather_objects(self.engine.world, self._zeros())), Counter())
        sizes = {n: getattr(p, "ds_numel", p.numel()) for n, p in self.engine.module.named_parameters()}
        silent = {name for name, size in sizes.items() if zeros[name] == size > 0}
        # an input of zeros, as of DETR's first layer, gives the weight no gradient and the bias one
        names = [name for name in sizes if name in silent and _bias_of(name) not in sizes.keys() - silent]
        if names and self.engine.world.is_main:
            log.warning(
                "no gradient has reached %s by step %d, though steps that train it were taken: something "
                "cuts the graph, such as a detach, or a branch that is not taken",
                first_of(names, NAMED),
                step + 1,
            )

    def _zeros(self) -> dict[str, int]:
        """Counts, of each parameter that has been updated, this rank's elements if their moments are 0."""
        counts, moments = fragments.update_counts(self.engine), self.engine.optimizer.moments
        found: Counter[str] = Counter()
        for fragment in fragments.owned(self.engine):
            if counts.get(fragment.name) and not any(fragment.tensors[key].any() for key in moments):
                found[fragment.name] += fragment.numel
        return dict(found)


def _bias_of(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"
