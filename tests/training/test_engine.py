"""Every ZeRO stage against plain torch AdamW in one process over the same global batches."""

from __future__ import annotations

import pytest
import torch
from toy import KINDS, Toy, objective_counts, toy_batch, toy_config

from flava_ds.training.distributed import World, start
from flava_ds.training.engine import Engine
from flava_ds.training.schedules import learning_rate

STAGES = ("zero0", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")


def batches_of(kind, step: int, ranks: int, accumulation: int):
    """The global batch as the table [rank][micro-step]; sizes are equal, terms are not."""
    return [[toy_batch(kind, step, rank, micro) for micro in range(accumulation)] for rank in range(ranks)]


def reference(config, idle: str, ranks: int) -> dict[str, torch.Tensor]:
    """One process, whole batch, torch.optim.AdamW with foreach and fused off, torch's clipping; 'zeros' fills absent gradients."""
    module = Toy()
    module.logit_scale = torch.nn.Parameter(module.logit_scale.detach().reshape(1))
    optimizer = torch.optim.AdamW(module.parameters(), betas=config.optimizer.betas, eps=config.optimizer.eps, weight_decay=0.1, foreach=False)
    for step, kind in enumerate(KINDS):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        batches = sum(batches_of(kind, step, ranks, config.training.gradient_accumulation_steps), [])
        denominators = {name: torch.tensor(float(n)) for name, n in objective_counts(module, batches).items()}
        optimizer.zero_grad()
        for batch in batches:
            module(batch, denominators).loss.backward()
        if idle == "zeros":
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.training.gradient_clipping)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def run_steps(engine: Engine, config, world: World, kinds, first_step: int = 0, poison: frozenset[int] = frozenset()) -> list[float]:
    """Runs one optimizer step per kind, as the trainer does; steps in `poison` get a NaN input on rank 0. Returns the gradient norms."""
    norms = []
    accumulation = config.training.gradient_accumulation_steps
    for step, kind in enumerate(kinds, start=first_step):
        table = batches_of(kind, step, world.size, accumulation)
        counts = objective_counts(engine.module, sum(table, []))
        denominators = {name: torch.tensor(n / world.size) for name, n in counts.items()}
        engine.begin(kind, learning_rate(config, step))
        for micro, batch in enumerate(table[world.rank]):
            if step in poison and world.rank == 0 and micro == 0:
                (batch.pixel_values if batch.kind != "text" else batch.input_ids).fill_(float("nan"))
            engine.forward_backward(batch, denominators)
        norms.append(float(engine.update()))
    return norms


def compare_stages(stages: tuple[str, ...], accumulation: int, idles: tuple[str, ...]) -> dict[tuple, float]:
    """On every rank: the largest difference from the reference, by (stage, idle)."""
    world = start(60)
    errors = {}
    for idle in idles:
        config = toy_config(gradient_accumulation_steps=accumulation, idle_parameters=idle)
        expected = reference(config, idle, world.size)
        for stage in stages:
            config = toy_config(stage, gradient_accumulation_steps=accumulation, idle_parameters=idle)
            module = Toy()
            engine = Engine(module, module.parameter_kinds(), config, world)
            run_steps(engine, config, world, KINDS)
            weights = dict(engine.full_weights())
            assert weights.keys() == expected.keys()
            errors[stage, idle] = max(float((weights[name] - expected[name]).abs().max()) for name in expected)
    return errors


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (2, 3)])
def test_every_stage_matches_plain_adamw(run_ranks, ranks, accumulation):
    for errors in run_ranks(compare_stages, ranks, STAGES, accumulation, ("frozen", "zeros")):
        print(ranks, accumulation, errors)
        assert len(errors) == 14
        assert max(errors.values()) < 2e-6, errors


def test_idle_switches_differ_by_more_than_the_tolerance():
    frozen, zeros = (reference(toy_config(), idle, 1) for idle in ("frozen", "zeros"))
    assert max(float((frozen[name] - zeros[name]).abs().max()) for name in frozen) > 1e-3
