"""One trial of `flava-ds plan --tune`: a run's first steps, timed on the machine at hand.

Started on every rank, like flava_ds.train, with FILE RECIPE overrides... Rank 0 writes FILE at the end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds import train
from flava_ds.processes import leave
from flava_ds.storage.atomic import write_json

if TYPE_CHECKING:
    from flava_ds.config import Config
    from flava_ds.training.trainer import Trainer

OF_EACH = 4
"""Steps of the source that is drawn least; the first one of each is not counted."""
MOST_STEPS = 200
"""A source that is drawn too seldom, or later in the run, is not waited for any longer."""


def run(words: list[str]) -> int:
    """Takes the first steps of a configuration; writes no checkpoint. Raises: UserError as training does.

    FILE has `steps`, each with its source and its seconds, waiting for the loader included, and
    `peak_memory_gib`, the largest of all ranks.
    """
    from flava_ds.recipes import resolve
    from flava_ds.recipes.outside import import_plugins, take_plugins

    plugins, words = take_plugins(words)
    import_plugins(plugins)
    file, recipe, *overrides = words
    config = resolve(recipe, overrides)
    # nobody wants to see these runs beside real ones
    logging = replace(config.logging, tensorboard=False, prometheus=False, wandb=False, sinks={})
    config = replace(
        config,
        logging=logging,
        checkpoint=replace(config.checkpoint, resume=False),
    )
    import torch
    import torch.distributed as dist

    from flava_ds.build import build
    from flava_ds.training.watcher import Watcher
    from flava_ds.watching.metrics import peak_memory

    class Peak(Watcher):
        """Keeps the largest peak of the records: each of them lets a GPU count anew."""

        gib = 0.0

        def on_record(self, step: int, record: Mapping[str, Any]) -> None:
            self.gib = max(self.gib, record["peak_memory_gib"])

    trainer, before = build(config), Peak()
    trainer.watchers += (before,)
    steps, device = take_steps(config, trainer), trainer.world.device
    peak = torch.tensor(peak_memory(device) / 2**30, dtype=torch.float64, device=device)
    if trainer.world.size > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    trainer.recorder.close()
    if trainer.world.is_main:
        found = {"steps": steps, "peak_memory_gib": max(before.gib, peak.item())}
        write_json(Path(file), found, indent=None)
    return 0


def take_steps(config: Config, trainer: Trainer) -> list[tuple[str, float]]:
    """Takes steps until each source has had its share; returns the source and the seconds of each."""
    import torch

    from flava_ds.watching.out_of_memory import explained

    device = trainer.world.device
    steps: list[tuple[str, float]] = []
    seen = Counter({name: 0 for name in config.drawn_sources})
    with closing(iter(trainer.loader)) as loaded:  # type: ignore[type-var]
        begun = time.perf_counter()
        for step, batches in enumerate(loaded):
            source = batches[0].source
            with explained(config, trainer.world, f"in step {step}, from '{source}'", step, source):
                trainer.train_step(step, batches)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            ended = time.perf_counter()
            steps.append((source, ended - begun))
            begun = ended
            seen[source] += 1
            if min(seen.values()) == OF_EACH or len(steps) == MOST_STEPS:
                break
    return steps


if __name__ == "__main__":
    leave(train.main(take=run))
