"""The training losses on held-out shards, for validation during training and for scaling laws."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from flava_ds.evaluation.datasets.held_out_shards import HeldOutShards
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.protocols import Losses, LossSums, Score, Splits
from flava_ds.evaluation.statistics import mean_of_batches


@dataclass(frozen=True)
class HeldOutLosses:
    """Every objective's mean loss over its terms, and the share of correct predictions where it has one."""

    name: str = "held_out_losses"
    about: str = "the run's own losses on shards that it did not train on"
    needs: tuple[type, ...] = (Losses,)
    data: HeldOutShards = HeldOutShards()
    group: str = "validation"

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Measures every kind of step of which there are shards."""
        losses, sets = model.need(Losses, self.name), data.test()
        kinds = sorted(losses.kinds & sets.folders.keys())
        if not kinds:
            raise Lacking(
                f"task {self.name}: the held-out shards are of {', '.join(sets.folders)} steps, but "
                f"{model.described.name} trains on those of {', '.join(sorted(losses.kinds))}"
            )
        batches: dict[str, list[LossSums]] = {}
        for kind in kinds:
            for found in losses.sums(kind, sets.folders[kind], sets.count(kind), model.share):
                for name, sums in found.items():
                    batches.setdefault(name, []).append(sums)
        scores = {}
        for name, of_batches in sorted(batches.items()):
            terms = [own.terms for own in of_batches]
            sums_of = {"loss": [own.loss for own in of_batches]}
            if of_batches[0].correct is not None:
                sums_of["accuracy"] = [own.correct or 0.0 for own in of_batches]
            for what, values in sums_of.items():
                mean = mean_of_batches(values, terms)
                if what == "loss":
                    mean = dataclasses.replace(mean, unit="nats", higher_is_better=False)
                scores[f"{name}_{what}"] = mean
        return scores


TASKS = (HeldOutLosses(),)
