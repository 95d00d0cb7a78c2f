"""The composition root: the only module that knows every part of a run."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flava_kernels.bench.machine import gemm_rate

from flava_ds.checkpoints import checkpoint, initial_weights
from flava_ds.checkpoints.keeper import CheckpointKeeper
from flava_ds.codebook.frozen import add_codebook
from flava_ds.config import Config
from flava_ds.data.first_look import look_over
from flava_ds.data.indexed import prepare_source
from flava_ds.data.loader import StepLoader
from flava_ds.data.quarantine import Quarantine, quarantine_file
from flava_ds.errors import DataError
from flava_ds.objectives.state import WeightAverage
from flava_ds.preview import preview
from flava_ds.ranks import roll_call
from flava_ds.ranks.distributed import (
    World,
    barrier,
    from_this_machine,
    gather_objects,
    log,
    spoken_by,
    start,
    together,
)
from flava_ds.ranks.launch import provide_demo_data
from flava_ds.ranks.patience import done_by_some
from flava_ds.training.compiling import check_compiler
from flava_ds.training.engine import Engine
from flava_ds.training.engine_config import merged_settings
from flava_ds.training.freezing import built
from flava_ds.training.trainer import Loader, Trainer
from flava_ds.watching.balance_norms import BalanceNorms
from flava_ds.watching.checksums import ChecksumWatch
from flava_ds.watching.evaluations import EvaluationWatcher
from flava_ds.watching.gradient_cosines import GradientCosines
from flava_ds.watching.gradient_norms import GradientNorms
from flava_ds.watching.metrics import Metrics
from flava_ds.watching.out_of_memory import MemoryWatch, explained
from flava_ds.watching.packages import check_packages
from flava_ds.watching.profiling import StepProfiler, check_device
from flava_ds.watching.spikes import DivergenceWatch
from flava_ds.watching.unreached import UnreachedWatch


def build(config: Config) -> Trainer:
    """Starts this rank and builds its trainer, at the latest checkpoint if checkpoint.resume is on.

    Raises: UserError on every rank, naming what cannot be used.
    """
    check_packages(config)
    check_compiler(config.training)
    world = start(config.engine.communication_timeout_s)
    check_device(config, world.device)
    merged_settings(config, world.size, world.device.type)  # refused before anything is written
    roll_call.begin(world)
    checkpoint.prepare(config, world)
    with explained(config, world, "while model and optimizer were set up"):
        with spoken_by(world.is_main):
            task = build_task(config, world)
        engine = Engine(task, config, world)
    resumed = checkpoint.resume(engine, config) if config.checkpoint.resume else None
    first_step = resumed.step if resumed else 0
    loader = build_loader(config, world, first_step, resumed.data if resumed else None)
    if first_step < config.training.total_steps:  # otherwise the file tells what has been trained
        checkpoint.record(config, world)
    if world.is_main:
        for line in preview(config, task, loader, world.size, world.device.type):
            log.info(line)
    return build_trainer(config, engine, loader, first_step, resumed.spikes if resumed else None)


def build_task(config: Config, world: World) -> Any:
    """Builds model, objectives, initial weights, frozen codebook and balance. Raises: UserError."""
    task = built(config)
    if config.initial_weights is not None:
        initial_weights.load_initial_weights(task, config.initial_weights, config.model.type)
        initial_weights.warn_of_other_settings(config.initial_weights, config)
    add_codebook(task, config, world.device)
    if config.balance is not None:
        task.states["balance"] = config.balance.build(task)
    if config.training.weight_average:
        task.states["ema"] = WeightAverage(config.training.weight_average)
    note_vocabulary(task, config)
    if config.initial_weights is not None:
        initial_weights.check_vocabulary(config.initial_weights, task.fingerprints)
    return task


def note_vocabulary(task: Any, config: Config) -> None:
    """Notes in the task what texts are read with; checkpoints keep it, and a resume refuses another one."""
    for source in config.drawn_sources.values():
        tokenizer = config.model.plan(config, source).tokenizer
        if tokenizer is not None:
            task.fingerprints["vocabulary"] = tokenizer.fingerprint()
            return


def build_trainer(
    config: Config, engine: Engine, loader: Loader, first_step: int, spikes: dict[str, Any] | None = None
) -> Trainer:
    """Assembles the trainer and its watchers; `spikes` is the saved state of the divergence watch."""
    rate = total_gemm_rate(config, engine.world)
    divergence = DivergenceWatch(engine, config.training)

    def progress(step: int) -> dict[str, float]:
        return {**loader.progress(step), "rollbacks": divergence.spikes.rollbacks}

    metrics = Metrics(config, engine, rate, first_step, progress, loader.steps_left)
    evaluations = build_evaluations(config, engine, metrics)
    measured = evaluations.metric if evaluations else lambda name: None
    keeper = CheckpointKeeper(engine, config, loader, metrics, divergence.spikes, first_step, measured)
    if spikes is not None:
        divergence.spikes.set_state(spikes)
    watchers = (
        StepProfiler(config, engine.world, first_step, metrics.paused),
        MemoryWatch(config, engine.world),
        keeper,
        BalanceNorms(engine),
        GradientNorms(engine, config.logging.objective_gradient_norms_every, metrics),
        GradientCosines(
            engine, config.logging.objective_gradient_cosines_every, metrics, len(config.data.sources)
        ),
        ChecksumWatch(engine, config.logging.checksum_every_steps, metrics.paused),
        UnreachedWatch(engine, config.training.total_steps),
        *([evaluations] if evaluations else []),
        metrics,  # after all watchers that pause its clock
        divergence,
    )
    return Trainer(config, engine, loader, metrics, watchers, first_step, keeper.go_back)


def build_evaluations(config: Config, engine: Engine, metrics: Metrics) -> EvaluationWatcher | None:
    """Builds the watcher that runs the configured tasks during training; None if there are none.

    Raises: UserError on every rank when a task, its data, or what it needs from the model is missing.
    """
    if not config.evaluation.every_steps:
        return None
    from flava_ds.evaluation.live import LiveEvaluation
    from flava_ds.training.whole_weights import WholeWeights

    weights = WholeWeights(engine, lambda: config.model.build(config), config.evaluation.average)
    evaluate = LiveEvaluation(config, engine.module, engine.world, weights.lent)
    return EvaluationWatcher(
        config.evaluation,
        config.training.total_steps,
        engine.world,
        evaluate,
        metrics.add_numbers,
        metrics.paused,
        evaluate.of_pixels,
        config.checkpoint.best_metric,
    )


def build_loader(config: Config, world: World, first_step: int, saved_state: dict | None) -> StepLoader:
    """Builds this rank's loader from `first_step` on, and compares it with the state of a resumed run.

    Raises: UserError on every rank when one cannot read its data, a step would draw a sample twice, or the
    data order would change.
    """
    # One process per machine unpacks the demo's data, indexes shards without an index and stores tables. The
    # others need not even ask for the state of each shard, which hundreds of ranks would do at once.
    work = partial(prepare_shards, config) if world.local_rank == 0 else None
    with together(world):
        prepared = done_by_some(world, work, config.engine.communication_timeout_s / 2)
    tables = from_this_machine(world, prepared)
    with together(world), spoken_by(world.local_rank == 0):
        pin_memory = world.device.type == "cuda"
        loader = StepLoader(config, world.rank, world.size, first_step, pin_memory=pin_memory, tables=tables)
        loader.quarantine = Quarantine(quarantine_file(config.run_path, world.rank))
        look_over(config, loader.sources)
    with together(world), spoken_by(world.is_main):
        if saved_state is not None:
            loader.check_state(saved_state)
    compare_data(world, loader)
    return loader


def compare_data(world: World, loader: StepLoader) -> None:
    """Raises DataError on every rank if one sees other samples than rank 0, e.g. in an outdated copy."""
    seen = {name: source.seen() for name, source in loader.sources.items()}
    first, *others = gather_objects(world, (socket.gethostname(), seen))
    for rank, (host, found) in enumerate(others, start=1):
        differing = [
            (name, what)
            for name, facts in first[1].items()
            for what, value in facts.items()
            if value is not None and found[name][what] not in (None, value)
        ]
        if differing:
            name, what = differing[0]
            counts = ""
            if what == "samples":
                counts = f": {found[name]['samples']} samples, not {first[1][name]['samples']}"
            raise DataError(
                f"rank {rank} (host {host}) reads other data for source '{name}' than rank 0 (host "
                f"{first[0]}): {what} differ{counts}; copy the shards again, so that all hosts have the same"
            ).everywhere()


def prepare_shards(config: Config) -> dict[str, Path]:
    """Unpacks the demo's data if a source reads it, indexes all shards, and stores the tables of large
    sources; returns their folders.

    Raises: UserError when data cannot be read.
    """
    provide_demo_data(config)
    named = {name: source for name, source in config.drawn_sources.items() if source.reader is None}
    folders = {name: prepare_source(config, name) for name, source in named.items()}
    return {name: folder for name, folder in folders.items() if folder is not None}


GEMM_EDGE = {"cpu": 768, "cuda": 8192}
"""Edge of the matrices whose product is timed at the start; small on CPUs, as every start waits for it."""


def total_gemm_rate(config: Config, world: World) -> float:
    """Measures all ranks at the same time, so that shared cores count once; returns the total in FLOP/s."""
    barrier(world)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.training.precision]
    return sum(gather_objects(world, gemm_rate(world.device, dtype, GEMM_EDGE[world.device.type])))
