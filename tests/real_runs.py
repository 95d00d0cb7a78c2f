"""Runs of the real trainer on a tiny model and written shards, on ranks that are forked from the tests'
server: a start costs some tenths of a second.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import rank_processes
from sample_runs import world_config, write_world
from told import Told

from flava_ds import config as configuration
from flava_ds.config import (
    CheckpointConfig,
    Config,
    EngineConfig,
    LoggingConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.schedules import CosineScheduleConfig
from flava_ds.training.watcher import Update, Watcher

STAGES = ("zero0", "zero1", "zero2", "zero3")
WAIT_S = 240.0
"""Not a measure of speed: a hang would last for ever."""


def real_config(folder: Path, **settings) -> Config:
    """A tiny run over written shards: three kinds, accumulation, two ranks, a line per step, a checkpoint
    every 4 steps.
    """
    config = world_config(
        folder, logging=LoggingConfig(run_directory=str(folder / "runs"), every_steps=1, tensorboard=False)
    )
    data = folder / "data" if (folder / "data").is_dir() else write_world(folder / "data")
    pairs, text = str(data / "pairs-train"), str(data / "text-test")
    sources = {
        "pair": SourceConfig(
            kind="pair", seed=0, shards=pairs, max_tokens=16, weight=0.5, caption_key="captions"
        ),
        "image": SourceConfig(kind="image", seed=1, shards=pairs, weight=0.25),
        "text": SourceConfig(kind="text", seed=2, shards=text, max_tokens=16, weight=0.25),
    }
    training = TrainingConfig(
        total_steps=14,
        global_batch_size=8,
        gradient_accumulation_steps=2,
        precision="bf16",
        gradient_clipping=1.0,
    )
    defaults = {
        "training": training,
        "schedule": CosineScheduleConfig(warmup_steps=3),
        "checkpoint": CheckpointConfig(every_steps=4),
    }
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=sources, num_workers=0), **(defaults | settings)
    )


def family_config(
    folder: Path, name: str, kind: str, *, stage: str = "zero1", accumulation: int = 1, **settings
) -> Config:
    """Six fp32 steps of another family (`settings`: model, objectives) on the sources of one kind."""
    config = real_config(folder)
    training = TrainingConfig(
        total_steps=6,
        global_batch_size=8,
        gradient_accumulation_steps=accumulation,
        precision="fp32",
        gradient_clipping=1.0,
    )
    return dataclasses.replace(
        config,
        name=name,
        codebook_weights=None,
        data=dataclasses.replace(
            config.data, sources={kind: dataclasses.replace(config.data.sources[kind], weight=1.0)}
        ),
        training=training,
        engine=EngineConfig(deepspeed_config=stage),
        **settings,
    )


class StopAfter(Watcher):
    """Sends the process a signal after a step, as a scheduler would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_update(self, update: Update) -> None:
        if update.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train_all(runs: Sequence[tuple[Config, int | None]]) -> list[int]:
    """On every rank: one run after the other, of which some are stopped after a step; returns their exit
    statuses.

    Each configuration goes through JSON, as it does where a launcher starts the ranks.
    """
    from flava_ds.build import build
    from flava_ds.ranks import run_lock

    statuses = []
    for config, stopped_after in runs:
        trainer = build(configuration.parse(json.dumps(configuration.to_dict(config)).encode(), config.name))
        if stopped_after is not None and trainer.world.is_main:
            trainer.watchers += (StopAfter(stopped_after),)
        statuses.append(trainer.fit())
        run_lock.release_all()
    return statuses


def losses_of(config: Config) -> list[float]:
    """Returns the losses of all steps of a run."""
    return [
        record[key]
        for record in steps_of(config.run_path)
        for key in (f"loss/{name}" for name in config.objectives)
        if key in record
    ]


def check_losses_of_every_split(
    runs: Sequence[tuple[Config, Sequence[Config]]], told: Told, rel: float = 1e-6
) -> None:
    """Trains the first of each pair on one rank and the others on two; their losses must agree within
    `rel`.
    """
    alone, splits = [one for one, _ in runs], [other for _, others in runs for other in others]
    for ranks, configs in ((1, alone), (2, splits)):
        ended = rank_processes.run_ranks(train_all, ranks, [(config, None) for config in configs])
        assert ended == [[0] * len(configs)] * ranks
    for one, others in runs:
        expected = losses_of(one)
        assert len(set(expected)) == len(expected) >= one.training.total_steps, one.name
        for other in others:
            found = losses_of(other)
            assert found == pytest.approx(expected, rel=rel), other.name
            named = f"2 ranks, {other.engine.deepspeed_config}"
            told.split(str(one.model.type), named, found, expected, rel)


def every_stage(make: Callable[..., Config], stages: Sequence[str] = STAGES) -> list:
    """Returns `make(name, accumulation=2)`, and with it `make(name, stage=...)` for each ZeRO stage."""
    return [(make("one", accumulation=2), [make(stage, stage=stage) for stage in stages])]


class Job:
    """A run on forked ranks, as a launcher that starts it and does nothing else. What each rank says goes to
    a file.
    """

    def __init__(self, config: Config, ranks_: int = 2, prepare: Callable[[int], None] | None = None) -> None:
        """Starts `ranks_` processes; `prepare` is called in each with its rank, before anything else."""
        rank_processes.start_server()
        run = Path(config.logging.run_directory) / f"{config.name}.job"
        self.folder = run / str(len(list(run.glob("*"))))
        self.folder.mkdir(parents=True)
        configuration.save(config, self.folder / "config.json")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        self.processes = [
            context.Process(target=_rank_main, args=(rank, ranks_, port, self.folder, prepare), daemon=True)
            for rank in range(ranks_)
        ]
        for process in self.processes:
            process.start()

    def signal(self, number: int, rank: int) -> None:
        """Sends a signal to a rank, if it is still there; one that has ended is gone some time before its
        exit code is known.
        """
        with suppress(ProcessLookupError):
            if self.processes[rank].exitcode is None:
                os.kill(self.processes[rank].pid, number)

    def wait(self, seconds: float = WAIT_S) -> list[int]:
        """Returns the exit codes of all ranks, negative for signals; a rank that is killed takes the others
        with it as under a launcher.

        Raises: TimeoutError when a rank does not end.
        """
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        if any(process.exitcode is None for process in self.processes):
            said = self.said()
            self.kill()
            raise TimeoutError(f"the run did not end within {seconds:g} s: {said[-3000:]}")
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """Ends what is left."""
        for rank, process in enumerate(self.processes):
            self.signal(signal.SIGKILL, rank)
            process.join()

    def running(self) -> bool:
        """Tells whether every rank is there."""
        return all(process.exitcode is None for process in self.processes)

    def wait_until(self, condition: Callable[[], bool], pause_s: float = 0.005) -> bool:
        """Waits for a condition; returns False when a rank ended before. Raises: TimeoutError."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if not self.running():
                return condition()
            if time.monotonic() > deadline:
                raise TimeoutError(self.said())
            time.sleep(pause_s)
        return True

    def said(self, rank: int | None = None) -> str:
        """Returns what all ranks or one of them wrote."""
        files = sorted(self.folder.glob("said_*")) if rank is None else [self.folder / f"said_{rank}"]
        return "".join(file.read_text(errors="replace") for file in files)

    def errors(self) -> list[str]:
        """Returns the lines that say why the run ended."""
        return [line for line in self.said().splitlines() if line.startswith("error: ")]


def _rank_main(rank: int, size: int, port: int, folder: Path, prepare: Callable[[int], None] | None) -> None:
    """One rank of a job."""
    import torch

    from flava_ds.train import main

    rank_processes.keep_shared_memory()
    said = os.open(folder / f"said_{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()}, **rank_processes.ENVIRONMENT)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(rank)
    status = main([str(folder / "config.json")])
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def steps_of(run_path: Path) -> list[dict]:
    """Returns the records of a run's log."""
    log = run_path / "log.jsonl"
    return (
        [json.loads(line) for line in log.read_text().splitlines()[1:] if line.endswith("}")]
        if log.is_file()
        else []
    )


def curve(run_path: Path) -> list[dict]:
    """Returns what must not depend on timing of every step: losses, accuracies, gradient norm, learning rate,
    source.
    """
    keys = ("step", "kind", "source", "lr", "grad_norm")
    return [
        {key: value for key, value in record.items() if key in keys or key[:5] in ("loss/", "accur")}
        for record in steps_of(run_path)
    ]
