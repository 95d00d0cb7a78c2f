"""Training FLOPs of a run on the demo's data, counted over its first steps, or on batches of the planner."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import torch

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.config import Config
from flava_ds.data.loader import StepLoader
from flava_ds.demo.dataset import unpack
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.synthetic import batch_of


def flops_of(config: Config, steps: int = 20) -> float:
    """Counts some steps, with those of frozen networks that compute targets, and scales them to the run."""
    root = unpack()
    sources = {
        name: dataclasses.replace(source, shards=str(root / source.shards.rpartition("/")[2]))
        for name, source in config.data.sources.items()
    }
    config = config.with_sources(sources)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=0))
    task = config.model.build(config)
    if config.computes_image_codes:
        task.frozen["codebook"] = ImageCodebook(config.codebook, decoder=False)
    batches = (batch for (batch,) in itertools.islice(StepLoader(config), steps))
    found = sum(task.flops(batch) + task.target_flops(batch) for batch in batches)
    return found * config.training.total_steps / steps


def planned_flops(config: Config, tokens: Mapping[str, int], **averages: int) -> float:
    """Counts a run's training FLOPs on batches as the planner makes them, of no device: texts of `tokens` by
    kind of sample, and what else a source's samples have on average.
    """
    sources, found = config.data.sources, 0.0
    with torch.device("meta"):
        task = config.model.build(config)
    for name, source in sources.items():
        plan = config.model.plan(config, dataclasses.replace(source, **averages))
        lengths = Lengths({tokens[source.kind]: 1.0}, "test")
        found += source.weight * task.flops(batch_of(plan, name, lengths, config.global_batch_size(name)))
    return found * config.training.total_steps / sum(source.weight for source in sources.values())
