"""The whole configuration tree: frozen dataclasses, cross-field checks, JSON in and out. Imports the standard
library only, so that --help is quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from flava_ds.config.bounds import AtLeast, AtMost, Below, Steps, check_bounds
from flava_ds.config.codebook import CodebookConfig, check_codebook
from flava_ds.config.data import DataConfig, SourceConfig, check_data, drawn_sources
from flava_ds.config.earlier import modernised
from flava_ds.config.evaluation import EvaluationConfig, check_evaluation
from flava_ds.config.family import FamilyConfig
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.config.optimizers import OptimizerConfig
from flava_ds.config.plain_files import loads, read_small
from flava_ds.config.run_folder import check_run_folder
from flava_ds.config.schedules import CosineScheduleConfig, ScheduleConfig
from flava_ds.config.sinks import SinkConfig
from flava_ds.config.strict_json import from_dict, to_dict
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch and numerics of a run."""

    total_steps: Annotated[int, AtLeast(1), AtMost(10**9)] = 214_286
    """Optimizer updates over all sources."""
    global_batch_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 8192
    """Samples of one optimizer step over all ranks; micro_batch_size = global_batch_size / (world size *
    gradient_accumulation_steps).
    """
    gradient_accumulation_steps: Annotated[int, AtLeast(1), AtMost(2**16)] = 1
    """Micro-steps whose gradients one optimizer step adds up."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of activations and gradients; weights and moments that the optimizer moves are fp32 always."""
    activation_checkpointing: bool = False
    """Compute the encoders' activations again in the backward pass instead of keeping them."""
    gradient_clipping: Annotated[float, AtLeast(0), AtMost(10**6)] = 0.0
    """Largest global norm; 0 clips nothing."""
    idle_parameters: Literal["frozen", "zeros"] = "frozen"
    """What an update does to parameters that its step kind does not use: 'frozen' leaves them alone (plain
    torch), 'zeros' gives them a zero gradient, so weight decay and momentum move them (FSDP, so probably the
    paper)."""
    stop_on_nonfinite: Annotated[int, AtLeast(1), AtMost(10**6)] = 10
    """After this many skipped updates in a row (loss or gradient norm not finite) the run goes back, or
    stops.
    """
    spike_factor: Annotated[float, AtLeast(0), AtMost(10**6)] = 0.0
    """A loss more than this many times the running median of its step kind is a spike; 0 looks for none. The
    paper says nothing of spikes.
    """
    spike_steps: Annotated[int, AtLeast(1), AtMost(10**6)] = 5
    """After this many spikes of one step kind in a row the run goes back, or stops."""
    max_rollbacks: Annotated[int, AtLeast(0), AtMost(1000)] = 0
    """How often a run goes back to its last good checkpoint and jumps the data from there to where it
    diverged, before it stops; 0 stops at once.
    """


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What DeepSpeed is told beyond the recipe."""

    deepspeed_config: str = "zero1"
    """A name under ds_configs/ or the path of a DeepSpeed JSON; it must not set what the recipe owns."""
    communication_timeout_s: Annotated[int, AtLeast(1), AtMost(7 * 86_400)] = 600
    """Seconds before a collective that a rank never joins ends the run; the ranks that wait name it."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: Steps = 1000
    """0 writes none for the sake of steps; one is written at the end in any case."""
    every_minutes: Annotated[float, AtLeast(0), AtMost(10**6)] = 0.0
    """Minutes since the last save, by rank 0's clock, after which one is due whatever the steps; 0 for never.
    """
    asynchronous: bool = True
    """Training goes on while the bytes are written; it stands for a copy to host memory, which keeps 12 bytes
    per parameter of this rank's part.
    """
    directory: str | None = None
    """Where the checkpoints lie, in a folder of the run's name: a path, or a URL that fsspec reaches, e.g.
    s3://bucket/runs; by default the run's folder.
    """
    keep_last: Annotated[int, AtLeast(1), AtMost(10**6)] = 2
    """How many of the newest checkpoints stay."""
    keep_every: Steps = 0
    """Checkpoints at multiples of this many steps stay; 0 for none."""
    keep_best: Annotated[int, AtLeast(0), AtMost(10**6)] = 0
    """How many checkpoints with the best best_metric stay."""
    best_metric: str = ""
    """Which number of the log keep_best compares, e.g. loss/global_contrastive: its last value before the
    checkpoint. Lower is better, but of a task's number (evaluation/<task>/<number>) what the task says."""
    resume: bool = True
    """Continue from `latest` in the run directory when there is one."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers go, and what is watched. docs/observability.md explains every number."""

    run_directory: str = "runs"
    """Folder of the runs' folders."""
    every_steps: Steps = 10
    """Steps between lines of the log; 0 logs the last step only."""
    tensorboard: bool = True
    """Write event files for TensorBoard."""
    wandb: bool = False
    """Also log to Weights & Biases (extra `wandb`); its variables apply, WANDB_MODE=offline among them."""
    wandb_project: str = "flava_ds"
    """Name of the project there."""
    prometheus: bool = True
    """Keep the latest numbers in metrics.prom, for the textfile collector of Prometheus' node_exporter."""
    sinks: dict[str, SinkConfig] = field(default_factory=dict)
    """Further places that take every record, by names of your choice."""
    objective_gradient_norms_every: Steps = 0
    """Steps of a window, in which the first step of each kind measures each objective's gradient norm on
    every encoder; 0 never measures.
    """
    straggler_lines: Annotated[int, AtLeast(0), AtMost(10**6)] = 3
    """Log lines in a row in which the same rank is the slowest by far before a warning names it; 0 never
    warns.
    """
    checksum_every_steps: Steps = 1000
    """Steps between comparisons of the ranks' copies of the parameters, bit by bit; 0 never compares."""
    profile_steps: tuple[Steps, Annotated[int, AtLeast(1), AtMost(1000)]] | None = None
    """(first step, count): steps whose operators rank 0 writes to profile/ as a Chrome trace."""
    profile_all_ranks: bool = False
    """Profile every rank, not rank 0 alone."""
    memory_snapshot_step: Steps | None = None
    """Step whose allocations every rank writes to profile/; needs a CUDA device."""


def _flava() -> FamilyConfig:
    """The family of a configuration that names none."""
    from flava_ds.families.flava.config import FlavaConfig

    return FlavaConfig()


def _adamw() -> OptimizerConfig:
    """The optimizer of a configuration that names none."""
    from flava_ds.optimizers.adamw import AdamWConfig

    return AdamWConfig()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete run. Saved as JSON beside every checkpoint, and enough to rebuild it."""

    name: str
    """The folder of the run, under logging.run_directory."""
    seed: Annotated[int, AtLeast(0), Below(2**32)] = 0
    """Of everything that is drawn: weights, order of the samples, masks, augmentation."""
    model: FamilyConfig = field(default_factory=_flava)
    """The model family and its shape."""
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    codebook_weights: str | None = None
    """Safetensors file or Hugging Face folder of the image codebook; needed when a source's codes are
    computed on the device.

    'random' takes an untrained one: its codes mean nothing, so that is for measuring time.
    """
    initial_weights: str | None = None
    """Folder or safetensors file whose tensors replace the random initialisation of those of the same name.
    """
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    """What the model is trained to do, by the names that losses have in the log."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=_adamw)
    """How weights follow gradients."""
    schedule: ScheduleConfig = field(default_factory=CosineScheduleConfig)
    """The learning rate of every step."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def run_path(self) -> Path:
        """Folder of this run's logs, checkpoints and report."""
        return Path(self.logging.run_directory) / self.name

    @property
    def predicts_image_codes(self) -> bool:
        """Whether an objective predicts the codes of masked patches."""
        return any(objective.predicts_codes for objective in in_use(self.objectives).values())

    @property
    def computes_image_codes(self) -> bool:
        """Whether a source comes without the codes that an objective predicts, so that the run needs the
        codebook.
        """
        without = any(
            source.kind != "text" and source.image_codes_key is None for source in self.drawn_sources.values()
        )
        return self.predicts_image_codes and without

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of update `step`; 0 is the first."""
        return self.schedule.learning_rate(step, self.optimizer.lr, self.training.total_steps)

    @property
    def drawn_sources(self) -> dict[str, SourceConfig]:
        """The sources that some step draws, by name."""
        return drawn_sources(self.data)

    def with_sources(self, sources: Mapping[str, SourceConfig]) -> Config:
        """Returns this configuration with other sources."""
        return replace(self, data=replace(self.data, sources=dict(sources)))

    def global_batch_size(self, name: str) -> int:
        """Samples that one optimizer step draws from source `name`, over all ranks."""
        return self.data.sources[name].global_batch_size or self.training.global_batch_size

    def micro_batch_size(self, name: str, world_size: int) -> int:
        """Samples of one micro-step on one rank.

        Raises: ConfigError when the global batch does not divide, or is too small for the masked share.
        """
        parts = world_size * self.training.gradient_accumulation_steps
        size, source = self.global_batch_size(name), self.data.sources[name]
        if size % parts:
            raise ConfigError(
                f"source '{name}': global_batch_size {size} does not divide by {world_size} ranks x "
                f"{self.training.gradient_accumulation_steps} accumulation steps; set "
                f"--data.sources.{name}.global-batch-size to a multiple of {parts}"
            )
        share = source.masked_share
        if source.kind == "pair" and size // parts * share < 1:
            raise ConfigError(
                f"source '{name}': masked_share {share:g} of {size // parts} samples on each rank leaves "
                "none to mask; "
                f"use a share of at least {parts / size:g} or a larger global_batch_size"
            )
        return size // parts


def check(config: Config) -> Config:
    """Returns `config` after the checks that involve several fields.

    Raises: ConfigError naming the fields and the way out.
    """
    check_bounds(config)
    config.model.check(config)
    check_objectives(config)
    check_codebook(config.codebook)
    config.schedule.check(config.optimizer.lr, config.training.total_steps)
    if config.checkpoint.keep_best and not config.checkpoint.best_metric:
        raise ConfigError(
            "checkpoint.keep_best needs checkpoint.best_metric, the number of the log to compare, e.g. "
            "loss/global_contrastive"
        )
    check_evaluation(config.evaluation, config.checkpoint.best_metric)
    for name, sink in config.logging.sinks.items():
        sink.check(f"logging.sinks.{name}", config)
    check_run_folder(config)
    check_data(config.data, config.model.max_tokens)
    check_read(config)
    return config


def check_objectives(config: Config) -> None:
    """Raises ConfigError for the first objective in use that cannot work, or when there is none."""
    for name, objective in in_use(config.objectives).items():
        objective.check(f"objectives.{name}", config)
        if unknown := sorted(objective.kinds - config.model.kinds.keys()):
            raise ConfigError(
                f"objectives.{name} reads {unknown[0]} batches, which the family of this model does not "
                f"have; it has {', '.join(config.model.kinds)}"
            )
    if not in_use(config.objectives):
        raise ConfigError("objectives is empty, or all have a weight of 0; a run needs at least one")


def check_read(config: Config) -> None:
    """Raises ConfigError for the first source that steps draw, although no objective in use reads its
    batches.
    """
    for source_name, source in config.drawn_sources.items():
        readers = [name for name, own in config.objectives.items() if source.kind in own.kinds]
        if not set(readers).intersection(in_use(config.objectives)):
            weights = " and ".join(f"objectives.{name}.weight" for name in readers) or "objectives"
            several = len(readers) > 1
            raise ConfigError(
                f"source '{source_name}': nothing reads its {source.kind} batches, because {weights} "
                f"{'are' if several else 'is'} 0; raise {'one' if several else 'it'}, or set "
                f"--data.sources.{source_name}.weight 0"
            )


def save(config: Config, path: Path) -> None:
    """Writes `config` as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> Config:
    """Rebuilds the configuration that `save` wrote.

    Raises: ConfigError on an unknown or missing key, naming the file and the key.
    """
    return parse(read_small(path), str(path))


def parse(text: bytes, where: str) -> Config:
    """Rebuilds the configuration from the contents of the file `where`; see `load`."""
    try:
        return check(_without_code(from_dict(Config, modernised(loads(text.decode("utf-8"))))))
    except (ConfigError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        raise ConfigError(f"{where}: {error}") from error


def _without_code(config: Config) -> Config:
    """Takes back what lets sources run code: a file may come from somebody else."""
    return config.with_sources(
        {name: replace(source, allow_code=False) for name, source in config.data.sources.items()}
    )
