"""What every stranger goes through: trained on real shards in several topologies, stopped, resumed, and
compared with itself.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real_runs import losses_of, steps_of, train_all
from safetensors import safe_open
from sample_runs import world_config, write_world
from told import Told
from toy import partition_everything

from flava_ds import config as configuration
from flava_ds.config import (
    CheckpointConfig,
    Config,
    EngineConfig,
    LoggingConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.schedules import ConstantScheduleConfig
from flava_ds.optimizers.adamw import AdamWConfig

STEPS, STOPPED_AFTER = 5, 2
SAMPLES = 8
"""Of a step."""


def stranger_config(folder: Path, **settings: Any) -> Config:
    """A run of a few steps over small shards of pairs, with a line of the log and a comparison of the ranks
    at every step.

    eps is large, since a gradient that is rounding noise would become a whole step otherwise.
    """
    logging = LoggingConfig(
        run_directory=str(folder / "runs"), every_steps=1, checksum_every_steps=1, tensorboard=False
    )
    config = world_config(folder, logging=logging)
    pairs = write_world(folder / "data") / "pairs-train"
    kind = settings.pop("kind", "pair")
    sources = {"drawings": SourceConfig(kind=kind, seed=0, shards=str(pairs), max_tokens=16)}
    defaults = {
        "data": dataclasses.replace(config.data, sources=sources, num_workers=0),
        "codebook_weights": None,
        "training": TrainingConfig(
            total_steps=STEPS, global_batch_size=SAMPLES, precision="fp32", gradient_clipping=1.0
        ),
        "optimizer": AdamWConfig(lr=5e-4, eps=1e-3),
        "schedule": ConstantScheduleConfig(warmup_steps=2),
        "checkpoint": CheckpointConfig(every_steps=0),
    }
    return configuration.check(dataclasses.replace(config, **(defaults | settings)))


def split(config: Config, name: str, stage: str, micro_batches: int) -> Config:
    """The same run under another name, on another stage and with other micro-batches."""
    training = dataclasses.replace(config.training, gradient_accumulation_steps=micro_batches)
    return dataclasses.replace(
        config, name=name, training=training, engine=EngineConfig(deepspeed_config=stage)
    )


def prove(
    run_ranks: Callable[..., list[Any]], config: Config, *, zero3: bool = True, told: Told | None = None
) -> list[dict[str, Any]]:
    """Trains a stranger on two ranks with two micro-batches under ZeRO 1 and ZeRO 3, each stopped and resumed
    as well, and on one rank with one micro-batch and with four; expects equal bits after a resumption, and
    everywhere the same numbers. Returns the curve.
    """
    stages = {"zero1": "zero1"}
    if zero3:
        stages["zero3"] = partition_everything(Path(config.logging.run_directory).parent)
    runs: list[tuple[Config, int | None]] = []
    for name, stage in stages.items():
        whole, broken = (split(config, f"{name}_{how}", stage, 2) for how in ("whole", "broken"))
        runs += [(whole, None), (broken, STOPPED_AFTER), (broken, None)]
    assert run_ranks(train_all, 2, tuple(runs)) == [[0, 128 + signal.SIGTERM, 0] * len(stages)] * 2
    alone = [split(config, f"alone_{parts}", "zero1", parts) for parts in (1, 4)]
    assert run_ranks(train_all, 1, tuple((own, None) for own in alone)) == [[0, 0]]

    expected, numbers = curve(alone[0]), numbers_of(alone[0])
    assert [line["step"] for line in expected] == list(range(STEPS))
    for (whole, _), (broken, _) in zip(runs[::3], runs[1::3], strict=True):
        assert "resumed" in json.loads((broken.run_path / "log.jsonl").read_text().splitlines()[0])
        assert curve(broken) == curve(whole)
        ours, theirs = numbers_of(broken), numbers_of(whole)
        assert (
            ours.keys() == theirs.keys()
            and [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        )
    for other in (alone[1], *(whole for whole, _ in runs[::3])):
        if told is not None:
            named = "1 rank of 4 micro-batches" if other is alone[1] else f"2 ranks, {other.name[:5]}"
            told.split(str(config.model.type), named, losses_of(other), losses_of(alone[0]), 1e-6)
        for ours, theirs in zip(curve(other), expected, strict=True):
            # The norm of a gradient whose terms nearly cancel has more rounding than the losses.
            assert ours.pop("grad_norm") == pytest.approx(theirs["grad_norm"], rel=1e-5), other.name
            assert ours == pytest.approx({key: theirs[key] for key in ours}, rel=1e-6, abs=1e-6), other.name
        for name, own in numbers_of(other).items():
            torch.testing.assert_close(own, numbers[name], rtol=1e-5, atol=1e-6, msg=f"{other.name}: {name}")
    return expected


def curve(config: Config) -> list[dict[str, Any]]:
    """What must not depend on timing of every step: the objectives' own numbers, those of evaluations, norm
    and learning rate.
    """

    def is_own(key: str) -> bool:
        return (
            key in ("step", "lr", "grad_norm")
            or key.startswith("evaluation/")
            or key.endswith(tuple(f"/{name}" for name in config.objectives))
        )

    return [{key: value for key, value in line.items() if is_own(key)} for line in steps_of(config.run_path)]


def numbers_of(config: Config, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every number of a checkpoint but random states, put together whatever the ranks: weights, moments,
    averages, states.
    """
    parts: dict[str, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for path in sorted((config.run_path / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            starts = json.loads(file.metadata()["starts"])
            for name in file.keys():
                if not name.startswith("generator/"):
                    parts[name].append((starts.get(name, 0), file.get_tensor(name)))
    return {
        name: torch.cat([part.reshape(-1) for _, part in sorted(own, key=lambda p: p[0])])
        for name, own in sorted(parts.items())
    }
