"""With gradient accumulation the exact contrastive loss takes two passes, and the second keeps one
micro-batch's graph at a time.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from equality_scenarios import Parts, Scenario, scenario_config
from sample_batches import make_batch
from torch import Tensor

from flava_ds.build import build_trainer
from flava_ds.checkpoints import checkpoint
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine


class SavedTensors:
    """Adds up the bytes that autograd keeps for backward passes, and notes the most at one time."""

    def __init__(self) -> None:
        self.live = self.most = 0

    def pack(self, tensor: Tensor) -> Kept:
        """Keeps a tensor for autograd."""
        return Kept(self, tensor)


class Kept:
    """A saved tensor; it counts as long as the graph holds it."""

    def __init__(self, counter: SavedTensors, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        counter.live += tensor.nbytes
        counter.most = max(counter.most, counter.live)

    def __del__(self) -> None:
        self.counter.live -= self.tensor.nbytes


def saved_bytes(numbers: tuple[int, ...], folder: str) -> dict[int, tuple[int, int]]:
    """By number of micro-batches of four pairs: most bytes kept at one time in a training step, and bytes
    kept after it.
    """
    world = start(30)
    found = {}
    for number in numbers:
        config = scenario_config(Scenario(accumulation=number), Path(folder), str(number))
        config = dataclasses.replace(
            config, training=dataclasses.replace(config.training, global_batch_size=4 * number)
        )
        checkpoint.prepare(config, world)
        module = build_task(config)
        trainer = build_trainer(config, Engine(module, config, world), Parts(config, world), 0)
        batches = [make_batch(Kind.PAIR, config, seed=3, lengths=(5, 6, 7, 8)) for _ in range(number)]
        saved = SavedTensors()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept.tensor):
            trainer.train_step(0, batches)
        trainer.recorder.close()
        found[number] = saved.most, saved.live
    return found


@pytest.mark.distributed
def test_memory_does_not_grow_with_the_micro_batches(run_ranks, tmp_path):
    (found,) = run_ranks(saved_bytes, 1, (1, 2, 6), str(tmp_path))
    assert found[2] == found[6] and found[6][0] > 100_000 and found[6][1] == 0
    assert found[6][0] == pytest.approx(found[1][0], rel=0.05), (
        "a loss of one micro-batch keeps its features instead of their gradients"
    )
