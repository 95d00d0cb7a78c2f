"""Checks that involve several sections of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flava_ds.config.bounds import check_bounds
from flava_ds.config.codebook import check_codebook
from flava_ds.config.data_checks import check_data, check_labels, check_names, check_padding
from flava_ds.config.evaluation import check_evaluation
from flava_ds.config.objectives import check_drawn_once, check_spikes, in_use, targets_of
from flava_ds.config.run_folder import check_run_folder
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.config.tree import Config


def check(config: Config) -> Config:
    """Returns `config` after all checks, including those that involve several fields.

    Raises: ConfigError that names the fields and the fix.
    """
    check_bounds(config)
    config.model.check(config)
    config.model.check_regions(config)
    config.model.check_identities(config)
    config.model.check_tasks(config)
    check_objectives(config)
    if config.balance is not None:
        config.balance.check(config)
    check_spikes(config.training.spike_factor, config.objectives)
    check_codebook(config.codebook)
    config.schedule.check(config.optimizer.lr, config.training.total_steps)
    last = config.training.total_steps - 1
    for step in (min(config.schedule.warmup_steps, last), last):
        config.learning_rate(step)
    if config.checkpoint.keep_best and not config.checkpoint.best_metric:
        raise ConfigError(
            "checkpoint.keep_best needs checkpoint.best_metric, the logged number to compare, e.g. "
            "loss/global_contrastive"
        )
    evaluation = config.evaluation
    if evaluation.every_steps and evaluation.average == "ema" and not config.training.weight_average:
        raise ConfigError(
            "evaluation.average is 'ema', but this run keeps no average of its weights; set "
            "training.weight_average, e.g. to 0.9999"
        )
    check_evaluation(evaluation, config.checkpoint.best_metric, in_use(config.objectives))
    for name, sink in config.logging.sinks.items():
        sink.check(f"logging.sinks.{name}", config)
    check_run_folder(config)
    check_data(config.data, config.model.max_tokens)
    check_padding(config)
    check_read(config)
    check_targets(config)
    return config


def check_objectives(config: Config) -> None:
    """Raises ConfigError for the first objective in use that cannot work, or if none is in use."""
    check_names("objectives", config.objectives, "_-")
    for name, objective in in_use(config.objectives).items():
        if unknown := sorted(objective.kinds - config.model.kinds.keys()):
            raise ConfigError(
                f"objectives.{name} reads {unknown[0]} batches, which this model's family does not have; it "
                f"has {', '.join(config.model.kinds)}"
            )
        for view in objective.views(config) if config.model.views else ():
            config.model.check_view(view, f"objectives.{name}")
        objective.check(f"objectives.{name}", config)
    check_drawn_once(config.objectives)
    if not in_use(config.objectives):
        raise ConfigError("objectives is empty, or all have a weight of 0; a run needs at least one")


def check_read(config: Config) -> None:
    """Raises ConfigError for the first drawn source whose batches no objective in use reads."""
    for source_name, source in config.drawn_sources.items():
        readers = [name for name, own in config.objectives.items() if source.step_kind in own.kinds]
        if not readers:
            read = sorted({kind for own in in_use(config.objectives).values() for kind in own.kinds})
            raise ConfigError(
                f"source '{source_name}': nothing reads its {source.step_kind} batches, as this run's "
                f"objectives read {', '.join(read)}; add one that does, or set "
                f"--data.sources.{source_name}.weight 0"
            )
        if not set(readers).intersection(in_use(config.objectives)):
            weights = " and ".join(f"objectives.{name}.weight" for name in readers)
            several = len(readers) > 1
            raise ConfigError(
                f"source '{source_name}': nothing reads its {source.step_kind} batches, because {weights} "
                f"{'are' if several else 'is'} 0; raise {'one' if several else 'it'}, or set "
                f"--data.sources.{source_name}.weight 0"
            )


def check_targets(config: Config) -> None:
    """Raises ConfigError for the first source whose labels no objective reads, or that lacks those read."""
    for name, source in config.data.sources.items():
        check_labels(name, source, targets_of(config.objectives, source.step_kind))
