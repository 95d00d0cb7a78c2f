"""Makes a plan's setting of a recipe: measures its work or finds it, and reads the DeepSpeed JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.scaling import kept
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.facts import Facts, Run
from flava_ds.scaling.hardware import Cluster, at_precision
from flava_ds.scaling.plan import Setting
from flava_ds.scaling.work import ModelWork
from flava_ds.scaling.zero import zero_of
from flava_ds.training.engine_config import read_settings

if TYPE_CHECKING:
    from flava_ds.config import Config


class Measured:
    """Measures a run with and without activation checkpointing, each once, or finds what was measured before.

    Nothing is kept for a `run` that is a configuration rather than a recipe with options, or that has code of
    the user's.
    """

    def __init__(self, run: Run | Config, lengths: Mapping[str, Lengths]) -> None:
        self.run, self.lengths = run, dict(lengths)
        self.done: dict[bool, ModelWork] = {}

    def __call__(self, checkpointing: bool) -> ModelWork:
        """Returns the work of the model's steps."""
        if checkpointing not in self.done:
            self.done[checkpointing] = (
                self.measured(self.run, checkpointing)
                if not isinstance(self.run, Run)
                else self.measured(self.run.config(), checkpointing)
                if self.run.has_own_code
                else self.measured_or_kept(self.run, checkpointing)
            )
        return self.done[checkpointing]

    def measured(self, config: Config, checkpointing: bool) -> ModelWork:
        """Measures, which takes seconds and loads torch."""
        from flava_ds.scaling.measure import measure

        training = replace(config.training, activation_checkpointing=checkpointing)
        return measure(replace(config, training=training), self.lengths)

    def measured_or_kept(self, run: Run, checkpointing: bool) -> ModelWork:
        """Returns what is kept of an earlier measurement, or measures and keeps that."""
        facts = run.facts()
        counts = {name: sorted(own.counts.items()) for name, own in self.lengths.items()}
        found = kept.kept_or_new(
            "work",
            lambda: [run.work_key(), checkpointing, counts],
            ModelWork,
            lambda: self.measured(run.config(), checkpointing),
        )
        return replace(found, recipe=facts.name)


def setting_of(facts: Facts, cluster: Cluster, measured: Callable[[bool], ModelWork]) -> Setting:
    """Returns the setting of a run on a cluster; `measured` takes whether activations are recomputed.

    Raises: ConfigError when a global batch does not divide by the GPUs, these lack the precision, or the
    DeepSpeed JSON is unusable.
    """
    for name in facts.drawn_sources:
        facts.micro_batch_size(name, cluster.gpus)
    settings, path = read_settings(facts.deepspeed_config)
    return Setting(
        model=measured(facts.checkpointing),
        cluster=at_precision(cluster, facts.precision),
        zero=zero_of(settings, Path(path), facts.precision, facts.accumulation, facts.fp32_sums),
        global_batches={name: source.global_batch for name, source in facts.drawn_sources.items()},
        own_batches=tuple(name for name, source in facts.drawn_sources.items() if source.own_batch),
        shares=facts.shares,
        total_steps=facts.total_steps,
        workers=facts.workers,
        objectives=facts.objectives,
        checkpointing=facts.checkpointing,
    )
