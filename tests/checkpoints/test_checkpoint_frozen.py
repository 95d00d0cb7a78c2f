"""Frozen parameters, buffers and counters in checkpoints, from one stage to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_engine import run_steps
from toy import KINDS, Toy, full_weights, partition_everything

from checkpoints.test_checkpoint import config_in, save
from flava_ds.checkpoints import checkpoint
from flava_ds.checkpoints.reader import load_weights
from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine


class Partial(Toy):
    """A toy with frozen parameters, one of them small, and a persistent buffer; all are random."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        draw = torch.Generator().manual_seed(seed)
        self.pooler = torch.nn.Linear(12, 5).requires_grad_(False)
        for parameter in self.pooler.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        self.register_buffer("seen", torch.randint(0, 1000, (3,), generator=draw))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def carry_over(folder: str, stages: tuple[str, ...]) -> list[tuple]:
    """On every rank: saves in each stage and loads in the next; returns whether all weights, the buffer and
    the counters came along.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def scaler() -> DynamicLossScaler:
        return DynamicLossScaler(
            init_scale=2**16, scale_window=1000, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
        )

    world, results = start(60), []
    for stage, following in zip(stages, (*stages[1:], stages[0]), strict=True):
        config, other_config = (
            config_in(folder, stage),
            dataclasses.replace(config_in(folder, following), name=Path(stage).stem),
        )
        engine, other = (
            Engine(module, own, world) for module, own in ((Partial(0), config), (Partial(1), other_config))
        )
        for one in (engine, other) if "0" not in (stage[4:5], following[4:5]) else ():
            one.deepspeed.optimizer.loss_scaler = scaler()
        checkpoint.prepare(config, world)
        run_steps(engine, config, world, KINDS[:3], poison=frozenset({2}))
        if isinstance(getattr(engine.deepspeed.optimizer, "loss_scaler", None), DynamicLossScaler):
            for overflow in (True, True, False):
                engine.deepspeed.optimizer.loss_scaler.update_scale(overflow)
        weights, counters = full_weights(engine), engine.counters()
        written = save(engine, config, 3)
        checkpoint.resume(other, other_config)
        loaded, stored = full_weights(other), load_weights(written)
        same = all(
            torch.equal(loaded[name], weights[name]) and torch.equal(stored[name], weights[name])
            for name in weights
        )
        buffers = (
            torch.equal(other.module.seen, engine.module.seen)
            and torch.equal(stored["seen"], engine.module.seen)
            and "scratch" not in stored
        )
        results.append(
            (
                stage,
                same,
                buffers,
                counters == other.counters(),
                counters["updates_skipped"]["skipped"],
                counters["loss_scaler"],
            )
        )
    return results


@pytest.mark.distributed
def test_frozen_parameters_buffers_and_counters_come_along(run_ranks, tmp_path):
    stages = ("zero1", partition_everything(tmp_path), "zero2_offload", "zero3", "zero0")
    for results in run_ranks(carry_over, 2, str(tmp_path), stages):
        assert len(results) == 5
        for stage, same, buffers, counters, skipped, scale in results:
            assert same and buffers and counters and skipped == 1, stage
            assert (
                scale is None
                if stage in ("zero0", "zero3")
                else scale["cur_scale"] < 2**16 and scale["cur_iter"] == 6
            ), (stage, scale)


def carry_exactly(folder: str, stages: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """On every rank: saves frozen parameters in each stage in bf16, loads and saves them again in the next;
    returns what of them is not as it was given, or in the module not that in bf16.
    """
    world, results = start(60), []
    given = {f"pooler.{name}": own.clone() for name, own in Partial(0).pooler.named_parameters()}
    for stage, following in zip(stages, (*stages[1:], stages[0]), strict=True):
        config = config_in(folder, stage, precision="bf16")
        other_config = dataclasses.replace(config_in(folder, following, precision="bf16"), name=config.name)
        engine, other = Engine(Partial(0), config, world), Engine(Partial(1), other_config, world)
        checkpoint.prepare(config, world)
        stored = load_weights(save(engine, config, 3))
        checkpoint.resume(other, other_config)
        computed, again = full_weights(other), load_weights(save(other, config, 4))
        wrong = [name for name, own in given.items() if not torch.equal(stored[name], own)]
        wrong += [f"again {name}" for name, own in given.items() if not torch.equal(again[name], own)]
        rounded = {name: own.bfloat16().float() for name, own in given.items()}
        wrong += [f"in use {name}" for name, own in rounded.items() if not torch.equal(computed[name], own)]
        results.append((stage, wrong))
    return results


@pytest.mark.distributed
def test_frozen_parameters_are_saved_as_they_were_given_in_half_precision(run_ranks, tmp_path):
    stages = ("zero1", partition_everything(tmp_path), "zero2_offload", "zero3")
    for results in run_ranks(carry_exactly, 2, str(tmp_path), stages):
        assert [wrong for _, wrong in results] == [[]] * 4, results
