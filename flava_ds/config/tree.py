"""The configuration tree: frozen dataclasses, and JSON in and out.

Imports only the standard library, so that --help is quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from flava_ds.config.balance import BalanceConfig
from flava_ds.config.bounds import AtLeast, AtMost, Below, Steps
from flava_ds.config.checks import check
from flava_ds.config.codebook import CodebookConfig
from flava_ds.config.data import DataConfig, SourceConfig, drawn_sources, micro_batch
from flava_ds.config.evaluation import EvaluationConfig
from flava_ds.config.family import FamilyConfig
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.config.optimizers import OptimizerConfig
from flava_ds.config.plain_files import loads, read_small
from flava_ds.config.schedules import CosineScheduleConfig, ScheduleConfig, along_cosine
from flava_ds.config.sinks import SinkConfig
from flava_ds.config.strict_json import from_dict, to_dict
from flava_ds.errors import ConfigError
from flava_ds.plain_text import public


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch size and numerics of a run."""

    total_steps: Annotated[int, AtLeast(1), AtMost(10**9)] = 214_286
    """Optimizer updates over all sources."""
    global_batch_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 8192
    """Samples per optimizer step over all ranks; the micro-batch is global_batch_size / (world size *
    gradient_accumulation_steps).
    """
    gradient_accumulation_steps: Annotated[int, AtLeast(1), AtMost(2**16)] = 1
    """Micro-steps whose gradients are summed for one optimizer step."""
    accumulate_in_fp32: bool = False
    """Sum them in fp32 even if `precision` is not: exact however many micro-steps there are, for twice the
    memory. Between ranks they travel in `precision` all the same, unless communication_data_type in the
    DeepSpeed JSON is "fp32".
    """
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of activations and gradients; the weights and moments of the optimizer are always fp32."""
    frozen: tuple[str, ...] = ()
    """Parts of the model that keep their weights, by name: image_encoder, which with trained ones in
    initial_weights is LiT, or within it image_encoder.transformer.blocks.0. Steps read them in `precision`;
    they are saved as they were.
    """
    weight_average: Annotated[float, AtLeast(0), Below(1)] = 0.0
    """Momentum of a running average of all trained weights, e.g. 0.9999, which is called ema and kept in fp32
    beside them; at most (1 + step) / (10 + step), so that the first weights do not stay in it. 0 keeps none.
    """
    activation_checkpointing: bool = False
    """Recompute the encoders' activations in the backward pass instead of keeping them."""
    checkpoint_sums: bool = False
    """With activation_checkpointing, keep one tensor per block instead of two, the sum of the stream and what
    is to be added to it. In half precision on a GPU gradients are rounded once more.
    """
    recompute_gelu: bool = False
    """Recompute only GELU in the backward pass: a quarter less memory for activations, the same numbers."""
    compile_blocks: bool = False
    """Compile the encoders' blocks with torch.compile at their first use, which takes a minute or more.
    Losses agree within rounding. Not with ZeRO-3.
    """
    pad_to_multiple_of: Annotated[int, AtLeast(0), AtMost(2**20)] = 0
    """Pad the packed tokens of a micro-batch, and its lists of rows to predict, to multiples of this many, so
    that few shapes occur; 0 pads nothing. Losses and gradients agree within rounding.
    """
    compile_codebook: bool = False
    """Compile the image codebook that computes codes during training. Codes can differ where two score almost
    the same.
    """
    gradient_clipping: Annotated[float, AtLeast(0), AtMost(10**6)] = 0.0
    """Maximum global norm of the gradients; 0 disables clipping."""
    clip_each_parameter: bool = False
    """Apply gradient_clipping to the norm of each parameter's gradient instead of the global norm (DINO)."""
    idle_parameters: Literal["frozen", "zeros"] = "frozen"
    """What an update does to parameters that the step's kind does not use: 'frozen' leaves them alone (as in
    plain torch), 'zeros' gives them a zero gradient, so weight decay and momentum still move them (as in
    FSDP, so probably the paper).
    """
    stop_on_nonfinite: Annotated[int, AtLeast(1), AtMost(10**6)] = 10
    """Skipped updates in a row (loss or gradient norm not finite) before the run rolls back or stops."""
    spike_factor: Annotated[float, AtLeast(0), AtMost(10**6)] = 0.0
    """A loss more than this many times the running median of its kind of step is a spike; 0 disables the
    detection, and objectives whose loss may be negative need that. The paper does not mention spikes.
    """
    spike_steps: Annotated[int, AtLeast(1), AtMost(10**6)] = 5
    """Spikes in a row of one kind of step before the run rolls back or stops."""
    max_rollbacks: Annotated[int, AtLeast(0), AtMost(1000)] = 0
    """Number of rollbacks to the last good checkpoint, skipping the data up to the divergence, before the run
    stops; 0 stops at the first divergence.
    """


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed settings that the recipe does not own."""

    deepspeed_config: str = "zero1"
    """A name under ds_configs/ or the path of a DeepSpeed JSON, which must not set what the recipe owns."""
    communication_timeout_s: Annotated[int, AtLeast(1), AtMost(7 * 86_400)] = 600
    """Seconds before a collective that a rank never joins ends the run; the waiting ranks name that rank."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to write checkpoints, and how many to keep."""

    every_steps: Steps = 1000
    """Steps between checkpoints; 0 disables this rule. The end of a run always writes one."""
    every_minutes: Annotated[float, AtLeast(0), AtMost(10**6)] = 0.0
    """Minutes since the last save, by rank 0's clock, after which another is due; 0 disables this rule."""
    asynchronous: bool = True
    """Write checkpoints in the background; training only pauses for a copy to host memory, which takes 12
    bytes per parameter that the rank holds.
    """
    directory: str | None = None
    """Parent of the checkpoint folder, which is named like the run: a path, or a URL that fsspec supports,
    e.g. s3://bucket/runs; None takes the run's folder.
    """
    keep_last: Annotated[int, AtLeast(1), AtMost(10**6)] = 2
    """Number of newest checkpoints to keep."""
    keep_every: Steps = 0
    """Keep checkpoints at multiples of this many steps; 0 for none."""
    keep_best: Annotated[int, AtLeast(0), AtMost(10**6)] = 0
    """Number of checkpoints with the best best_metric to keep."""
    best_metric: str = ""
    """Logged number that keep_best compares, e.g. loss/global_contrastive: its last value before the
    checkpoint. Lower is better, except of accuracy/<objective>; of evaluation/<task>/<number>, the task
    decides.
    """
    resume: bool = True
    """Continue from `latest` in the run directory if there is one."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where to log, and what to monitor. docs/observability.md explains every number."""

    run_directory: str = "runs"
    """Parent folder of the runs."""
    every_steps: Steps = 10
    """Steps between log lines; 0 logs only the last step."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Also log to Weights & Biases (extra `wandb`); its variables apply, such as WANDB_MODE=offline."""
    wandb_project: str = "flava_ds"
    """Project name in Weights & Biases."""
    prometheus: bool = True
    """Keep the latest numbers in metrics.prom, for the textfile collector of Prometheus' node_exporter."""
    sinks: dict[str, SinkConfig] = field(default_factory=dict)
    """More destinations for every record, by names of your choice."""
    objective_gradient_norms_every: Steps = 0
    """Steps per window in which the first step of each kind measures every objective's gradient norm on every
    encoder; 0 never measures.
    """
    objective_gradient_cosines_every: Steps = 0
    """The same for the cosine between every two objectives' gradients on every encoder that they share; 0
    never measures.
    """
    straggler_lines: Annotated[int, AtLeast(0), AtMost(10**6)] = 3
    """Log lines in a row with the same rank slowest by far before a warning names it; 0 never warns."""
    checksum_every_steps: Steps = 1000
    """Steps between bitwise comparisons of the ranks' parameters; 0 never compares."""
    profile_steps: tuple[Steps, Annotated[int, AtLeast(1), AtMost(1000)]] | None = None
    """(first step, count): steps of which rank 0 writes a Chrome trace to profile/."""
    profile_all_ranks: bool = False
    """Profile all ranks instead of rank 0 only."""
    memory_snapshot_step: Steps | None = None
    """Step whose memory allocations every rank writes to profile/; requires a CUDA device."""


def _flava() -> FamilyConfig:
    """Returns the default family."""
    from flava_ds.families.flava.config import FlavaConfig

    return FlavaConfig()


def _adamw() -> OptimizerConfig:
    """Returns the default optimizer."""
    from flava_ds.optimizers.adamw import AdamWConfig

    return AdamWConfig()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete run. Saved as JSON with every checkpoint, and sufficient to rebuild the run."""

    name: str
    """Name of the run's folder in logging.run_directory."""
    seed: Annotated[int, AtLeast(0), Below(2**32)] = 0
    """Seed of everything random: initial weights, order of samples, masks, augmentation."""
    model: FamilyConfig = field(default_factory=_flava)
    """The model family and its shape."""
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    codebook_weights: str | None = None
    """Safetensors file or Hugging Face folder of the image codebook; needed if a source's codes are computed
    on the device.

    'random' takes an untrained one, for timing only: its codes mean nothing.
    """
    initial_weights: str | None = None
    """Folder or safetensors file with initial values for tensors of the same name, or a checkpoint's URL."""
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    """What to train the model to do, by the names of losses in the log."""
    balance: BalanceConfig | None = None
    """What changes the objectives' weights during training; None keeps them."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=_adamw)
    """How gradients update the weights."""
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
    def predicts_region_classes(self) -> bool:
        """Whether an objective predicts a detector's classes of masked regions."""
        return any(own.predicts_region_classes for own in in_use(self.objectives).values())

    @property
    def computes_image_codes(self) -> bool:
        """Whether an objective predicts codes that a source does not store, so the run needs the codebook."""
        without = any(
            source.kind != "text" and source.image_codes_key is None for source in self.drawn_sources.values()
        )
        return self.predicts_image_codes and without

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of update `step`; 0 is the first."""
        return self.schedule.learning_rate(step, self.optimizer.lr, self.training.total_steps)

    def weight_decay(self, step: int) -> float:
        """Returns the weight decay of update `step`; 0 is the first."""
        begin, end = self.optimizer.weight_decay, self.optimizer.weight_decay_end
        return begin if end is None else along_cosine(begin, end, step / self.training.total_steps)

    @property
    def drawn_sources(self) -> dict[str, SourceConfig]:
        """The sources that at least one step draws, by name."""
        return drawn_sources(self.data)

    def with_sources(self, sources: Mapping[str, SourceConfig]) -> Config:
        """Returns this configuration with other sources."""
        return replace(self, data=replace(self.data, sources=dict(sources)))

    def global_batch_size(self, name: str) -> int:
        """Returns the samples per optimizer step of source `name`, over all ranks."""
        return self.data.sources[name].global_batch_size or self.training.global_batch_size

    def micro_batch_size(self, name: str, world_size: int) -> int:
        """Returns the samples per micro-step on one rank.

        Raises: ConfigError when the global batch is not divisible, or too small for the masked share.
        """
        source = self.data.sources[name]
        return micro_batch(
            name,
            self.global_batch_size(name),
            world_size,
            self.training.gradient_accumulation_steps,
            own=source.global_batch_size is not None,
            together=self.model.samples_together(source.kind),
            masked_share=source.masked_share if source.kind == "pair" else 1.0,
        )


def save(config: Config, path: Path) -> None:
    """Writes `config` as JSON, without the secrets of URLs."""
    path.write_text(dumps(config), encoding="utf-8")


def dumps(config: Config) -> str:
    """Returns what `save` writes."""
    return json.dumps(public(to_dict(config)), indent=2) + "\n"


def load(path: Path) -> Config:
    """Rebuilds the configuration that `save` wrote.

    Raises: ConfigError that names the file and the unknown or missing key.
    """
    return parse(read_small(path), str(path))


def parse(text: bytes, where: str) -> Config:
    """Rebuilds the configuration from the contents of the file `where`; see `load`."""
    try:
        return rebuild(loads(text.decode("utf-8")))
    except (ConfigError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise ConfigError(f"{where}: {error}") from error


def rebuild(data: dict[str, Any], checked: bool = True) -> Config:
    """Builds the configuration that a file describes in plain types, and checks that its values fit together.

    Raises: ConfigError on an unknown or missing key, naming it.
    """
    config = _without_code(from_dict(Config, data))
    return check(config) if checked else config


def _without_code(config: Config) -> Config:
    """Clears allow_code of all sources: a file may come from somebody else."""
    sources = {name: replace(source, allow_code=False) for name, source in config.data.sources.items()}
    return config.with_sources(sources)
