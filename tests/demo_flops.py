"""Training FLOPs of a run on the demo's data, counted over its first steps."""

from __future__ import annotations

import dataclasses
import itertools

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.config import Config
from flava_ds.data.loader import StepLoader
from flava_ds.demo.dataset import unpack


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
