"""fp16 with DeepSpeed's loss scale, on a CPU that says it could, where its products are slow."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from real_runs import steps_of
from test_engine import full_weights, reference, run_steps
from test_engine_schedules import HELD, HoldingToy
from test_trainer import toy_trainer
from toy import KINDS, Toy, partition_everything, toy_config

from flava_ds.ranks.distributed import start
from flava_ds.training import deepspeed_fixes, engine_config
from flava_ds.training.engine import Engine


def allow_fp16() -> None:
    """Lets this process train in fp16 for the rest of its life."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    types = [torch.float, torch.half]
    for patch in (
        mock.patch.object(engine_config, "_check_precision"),
        mock.patch.object(type(accelerator), "is_fp16_supported", lambda _: True),
        mock.patch.object(type(accelerator), "supported_dtypes", lambda _: types),
    ):
        patch.start()


def train(stages: tuple[str, ...], window: int, fixed: bool) -> dict[str, tuple[float, float]]:
    """The mean distance of weights from the fp32 reference, and the last loss scale, by stage; the scale is
    raised after so many updates.
    """
    world, found = start(60), {}
    expected = reference(toy_config(), "frozen", world.size)
    allow_fp16()
    if not fixed:
        mock.patch.object(deepspeed_fixes, "unscale_by_their_own_scale").start()
    for stage in stages:
        config = toy_config(stage, precision="fp16")
        engine = Engine(Toy(), config, world)
        scaler = engine.deepspeed.optimizer.loss_scaler
        scaler.scale_window, scaler.cur_scale = window, 2.0**8
        run_steps(engine, config, world, KINDS)
        weights = full_weights(engine)
        distance = sum(float((weights[name].float() - expected[name]).abs().mean()) for name in expected)
        found[stage] = distance, scaler.cur_scale
    return found


def test_every_stage_follows_fp32_while_the_loss_scale_rises(run_ranks, tmp_path):
    zero3, zero3_offload = partition_everything(tmp_path), partition_everything(tmp_path, "zero3_offload")
    stages = ("zero1", "zero2", zero3, "zero1_offload", "zero2_offload", zero3_offload)
    (found,) = run_ranks(train, 1, stages, 2, True)
    assert all(distance < 0.003 and scale > 2**8 for distance, scale in found.values()), found


def test_upstream_still_unscales_by_the_next_steps_scale(run_ranks, tmp_path):
    (found,) = run_ranks(train, 1, ("zero1", partition_everything(tmp_path)), 2, False)
    assert all(distance > 0.01 for distance, _ in found.values()), found


def fit_with_a_rising_scale(folder: str) -> tuple[list[float], float]:
    """The loss scales of a run's log, a line of every second step, and the scaler's own at the end."""
    allow_fp16()
    trainer = toy_trainer(folder, precision="fp16")
    scaler = trainer.engine.deepspeed.optimizer.loss_scaler
    scaler.scale_window, scaler.cur_scale = 2, 2.0**8
    assert trainer.fit() == 0
    return [line["loss_scale"] for line in steps_of(Path(folder) / "toy")], scaler.cur_scale


def test_the_loss_scale_is_in_the_log(run_ranks, tmp_path):
    ((logged, last),) = run_ranks(fit_with_a_rising_scale, 1, str(tmp_path))
    assert logged == [2.0**power for power in range(8, 14)] and logged[-1] == last


def diverge(stages: tuple[str, ...]) -> dict[str, tuple[int, float]]:
    """Updates skipped and the last loss scale, by stage, where every step's inputs are no numbers."""
    world, found = start(60), {}
    allow_fp16()
    for stage in stages:
        config = toy_config(stage, precision="fp16")
        engine = Engine(Toy(), config, world)
        engine.deepspeed.optimizer.loss_scaler.cur_scale = 4.0
        run_steps(engine, config, world, KINDS[:6], poison=frozenset(range(6)))
        found[stage] = int(engine.longest_skip), engine.deepspeed.optimizer.loss_scaler.cur_scale
    return found


def test_updates_are_skipped_where_the_loss_scale_cannot_fall_any_more(run_ranks, tmp_path):
    stages = ("zero1", "zero2_offload", partition_everything(tmp_path))
    for found in run_ranks(diverge, 1, stages):
        assert set(found.values()) == {(6, 1.0)}, found


def overflow_in_what_is_held_back(stages: tuple[str, ...]) -> dict[str, tuple[int, float, bool]]:
    """By stage, after a step in which the gradient of a layer overflows that only later steps move: updates
    skipped, whether the update was applied, and whether no weight has changed.
    """
    world, found = start(60), {}
    allow_fp16()
    for stage in stages:
        config = toy_config(stage, precision="fp16")
        engine = Engine(HoldingToy(), config, world)
        before = full_weights(engine)
        dict(engine.module.named_parameters())[HELD].register_hook(lambda gradient: gradient * torch.inf)
        run_steps(engine, config, world, KINDS[:1])
        same = all(torch.equal(before[name], own) for name, own in full_weights(engine).items())
        found[stage] = int(engine.skipped), float(engine.applied), same
    return found


def test_an_overflow_in_what_is_held_back_counts_as_the_skipped_update_that_it_is(run_ranks, tmp_path):
    stages = ("zero1", "zero2_offload", partition_everything(tmp_path))
    for found in run_ranks(overflow_in_what_is_held_back, 1, stages):
        assert set(found.values()) == {(1, 0.0, True)}, found
