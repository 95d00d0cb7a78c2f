"""Makes a plan's setting of a configuration: measures the model, reads the DeepSpeed JSON, takes shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flava_ds.config import Config
from flava_ds.config.objectives import in_use
from flava_ds.data.round_robin import weight_stages
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.hardware import Cluster
from flava_ds.scaling.measure import measure
from flava_ds.scaling.plan import Setting
from flava_ds.scaling.work import ModelWork
from flava_ds.scaling.zero import zero_of
from flava_ds.training.engine_config import read_settings


class Measured:
    """Measures a configuration with and without activation checkpointing, each once."""

    def __init__(self, config: Config, lengths: Mapping[str, Lengths]) -> None:
        self.config, self.lengths = config, dict(lengths)
        self.done: dict[bool, ModelWork] = {}

    def __call__(self, checkpointing: bool) -> ModelWork:
        """Returns the work of the model's steps."""
        if checkpointing not in self.done:
            training = replace(self.config.training, activation_checkpointing=checkpointing)
            self.done[checkpointing] = measure(replace(self.config, training=training), self.lengths)
        return self.done[checkpointing]


def setting_of(config: Config, cluster: Cluster, measured: Measured) -> Setting:
    """Returns the setting of a run on a cluster.

    Raises: ConfigError when a global batch does not divide by the GPUs, or the DeepSpeed JSON is unusable.
    """
    for name in config.drawn_sources:
        config.micro_batch_size(name, cluster.gpus)
    settings, path = read_settings(config.engine.deepspeed_config)
    checkpointing = config.training.activation_checkpointing
    return Setting(
        model=measured(checkpointing),
        cluster=cluster,
        zero=zero_of(
            settings, Path(path), config.training.precision, config.training.gradient_accumulation_steps
        ),
        global_batches={name: config.global_batch_size(name) for name in config.drawn_sources},
        shares=shares_of(config),
        total_steps=config.training.total_steps,
        workers=config.data.num_workers,
        objectives=len(in_use(config.objectives)),
        checkpointing=checkpointing,
    )


def shares_of(config: Config) -> dict[str, float]:
    """Returns the share of the run's steps that draw each source, over all stages of weights."""
    stages = weight_stages(config.data, dict.fromkeys(config.drawn_sources))
    ends = [first for first, _ in stages[1:]] + [config.training.total_steps]
    found = dict.fromkeys(config.drawn_sources, 0.0)
    for (first, weights), end in zip(stages, ends, strict=True):
        steps = max(0, min(end, config.training.total_steps) - first)
        for name, weight in weights.items():
            found[name] += float(weight) * steps / config.training.total_steps
    return found
