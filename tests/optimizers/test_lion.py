"""Lion against its published program in fp64, the engine's contract, and every ZeRO stage on one and two
ranks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engine import batches_of, everything, run_steps
from toy import KINDS, Toy, full_weights, objective_counts, partition_everything, toy_config

from flava_ds.checkpoints import checkpoint
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.config.options import override
from flava_ds.config.variants import find
from flava_ds.optimizers.base import activate
from flava_ds.optimizers.lion import Lion, LionConfig
from flava_ds.ranks.distributed import start
from flava_ds.recipes import RECIPES
from flava_ds.training.engine import Engine

CONFIG = LionConfig(lr=0.1, betas=(0.9, 0.95), weight_decay=0.3)


def parameters() -> list[torch.nn.Parameter]:
    """Returns two parameters in fp64."""
    return [
        torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64))
        for i in range(2)
    ]


def gradient(step: int, number: int) -> torch.Tensor:
    """Returns what a step gives a parameter."""
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + number), dtype=torch.float64)


def groups_of(weights: list[torch.nn.Parameter]) -> list[dict]:
    """Returns a group for each parameter: an image step's with decay, a text step's without."""
    return [
        {"params": [weight], "kinds": [kind], "active": True, "weight_decay": decay, "lr": 0.1}
        for weight, kind, decay in zip(weights, ("image", "text"), (0.3, 0.0), strict=True)
    ]


def published(
    weight: np.ndarray, momentum: np.ndarray, step: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one update by the paper's program 1."""
    direction = np.sign(0.9 * momentum + 0.1 * step)
    return weight - 0.1 * (direction + decay * weight), 0.95 * momentum + 0.05 * step


def test_updates_are_the_published_ones_and_sleeping_groups_stay():
    weights = parameters()
    lion = Lion(groups_of(weights), CONFIG)
    expected = [(weight.detach().numpy().copy(), np.zeros((5, 3))) for weight in weights]
    for step, kind in enumerate(("image", "text", "image", "image", "text")):
        activate(lion, kind, "frozen")
        for number in range(2):
            weights[number].grad = gradient(step, number)
        lion.step()
        moved = ("image", "text").index(kind)
        expected[moved] = published(*expected[moved], gradient(step, moved).numpy(), (0.3, 0.0)[moved])
    for weight, (value, momentum), updates in zip(weights, expected, (3, 2), strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), value, rtol=0, atol=1e-14)
        np.testing.assert_allclose(lion.state[weight]["exp_avg"].numpy(), momentum, rtol=0, atol=1e-15)
        assert lion.updates_of({}, weight) == updates and lion.state[weight].keys() == {"step", *lion.moments}


def test_the_flag_skips_on_the_device_and_the_scale_divides():
    ours, theirs = parameters(), parameters()
    one, two = Lion(groups_of(ours), CONFIG), Lion(groups_of(theirs), CONFIG)
    for step, bad in enumerate((False, True, False, True)):
        one.found_inf, one.grad_scale = torch.tensor(float(bad)), torch.tensor(4.0)
        for number in range(2):
            ours[number].grad = (
                torch.full((5, 3), float("nan" if step == 1 else "inf"), dtype=torch.float64)
                if bad
                else 4.0 * gradient(step, number)
            )
            theirs[number].grad = gradient(step, number)
        one.step()
        if not bad:
            two.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) and torch.equal(one.state[a]["exp_avg"], two.state[b]["exp_avg"])
        assert one.updates_of({}, a) == two.updates_of({}, b) == 2
        one.set_updates({}, a, 7)
        assert one.updates_of({}, a) == 7


def test_recipes_take_it_by_its_name():
    changed = override(RECIPES["demo"](), ["--optimizer", "lion"]).optimizer
    assert type(changed) is LionConfig is find(type(changed).__mro__[1], "lion", "optimizer")
    # what demo sets; weight_decay 0.1 is AdamW's default
    assert changed == LionConfig(lr=5e-4, betas=(0.9, 0.98), decay_norm_and_bias=False)
    assert isinstance(changed.build(groups_of(parameters())), Lion)


@pytest.mark.parametrize("bad", [0.0, 1.0])
def test_a_step_never_asks_the_host(bad):
    """Nothing in it turns a tensor into a number, not even that which says that the gradients are unusable;
    then no weight moves.
    """
    weights = parameters()
    before = [weight.detach().clone() for weight in weights[:2]]
    lion = Lion(groups_of(weights), CONFIG)
    lion.found_inf, lion.grad_scale = torch.tensor(bad), torch.tensor(2.0)
    for number in range(2):
        weights[number].grad = gradient(0, number)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy"):
            patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits for the device"))
        lion.step()
    assert [torch.equal(weight, old) for weight, old in zip(weights, before, strict=False)] == [
        bad == 1.0
    ] * 2


def toy_run(stage: str, folder: str) -> Config:
    """Returns the toy's run with Lion; its name says how it is split."""
    config = toy_config(stage, gradient_accumulation_steps=1)
    lion = LionConfig(lr=1e-2, weight_decay=0.1)
    logging = LoggingConfig(run_directory=folder)
    return dataclasses.replace(
        config,
        name=Path(stage).stem,
        optimizer=lion,
        logging=logging,
        checkpoint=CheckpointConfig(keep_last=9),
    )


def reference(config: Config, ranks: int) -> dict[str, torch.Tensor]:
    """One process, whole batches, the published program in plain torch, torch's clipping; parameters without
    a gradient stay.
    """
    module = Toy()
    module.logit_scale = torch.nn.Parameter(module.logit_scale.detach().reshape(1))
    momenta = [torch.zeros_like(weight) for weight in module.parameters()]
    for step, kind in enumerate(KINDS):
        batches = [batch for row in batches_of(kind, step, ranks, 1) for batch in row]
        denominators = {name: torch.tensor(float(n)) for name, n in objective_counts(module, batches).items()}
        module.zero_grad()
        for batch in batches:
            module("step", batch, denominators).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.training.gradient_clipping)
        plain_update(list(module.parameters()), momenta, config.optimizer, config.learning_rate(step))
    return {name: weight.detach() for name, weight in module.named_parameters()}


@torch.no_grad()
def plain_update(
    weights: list[torch.nn.Parameter], momenta: list[torch.Tensor], lion: LionConfig, lr: float
) -> None:
    """Moves the parameters that have a gradient."""
    for weight, momentum in zip(weights, momenta, strict=True):
        if weight.grad is not None:
            direction = torch.sign(lion.betas[0] * momentum + (1 - lion.betas[0]) * weight.grad)
            weight.sub_(lr * (direction + lion.weight_decay * weight))
            momentum.mul_(lion.betas[1]).add_((1 - lion.betas[1]) * weight.grad)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Counts the elements that differ by more than rounding, and all of them; a sign that rounding turns
    moves one element by 2 lr.
    """
    assert ours.keys() == theirs.keys()
    far = sum(int(((ours[name] - theirs[name]).abs() > 1e-5).sum()) for name in ours)
    return far, sum(weight.numel() for weight in ours.values())


def train_and_go_on(folder: str, stages: tuple[str, ...]) -> dict[tuple[str, str], tuple]:
    """On every rank: each stage trains a part, saves, and goes on in every stage; how far the ends are from
    the reference.
    """
    world, results = start(60), {}
    expected = reference(toy_run("zero1", folder), world.size)
    for stage in stages:
        config = toy_run(stage, folder)
        checkpoint.prepare(config, world)
        engine = Engine(Toy(), config, world)
        run_steps(engine, config, world, KINDS[:4])
        saver = Saver(engine, config)
        saver.save(4, {})
        saver.finish()
        saved = everything(engine)
        run_steps(engine, config, world, KINDS[4:], first_step=4)
        results[stage, stage] = (
            distance(full_weights(engine), expected),
            [],
            sorted({key for state in engine.optimizer.state.values() for key in state}),
        )
        for other in stages:
            engine = Engine(Toy(seed=1), toy_run(other, folder), world)
            assert checkpoint.resume(engine, config)[:2] == (4, {})
            loaded = everything(engine) if other == stage else saved
            changed = [name for name in saved if not torch.equal(saved[name], loaded[name])]
            run_steps(engine, config, world, KINDS[4:], first_step=4)
            results[stage, f"on in {other}"] = (distance(full_weights(engine), expected), changed, [])
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_stages_train_save_and_go_on_alike(run_ranks, tmp_path, ranks):
    stages = ("zero1", partition_everything(tmp_path))
    for results in run_ranks(train_and_go_on, ranks, str(tmp_path), stages):
        assert len(results) == 6
        for pair, ((far, elements), changed, kept) in results.items():
            assert elements > 2000 and far <= elements // 1000 and changed == [], (
                pair,
                far,
                elements,
                changed,
            )
            assert kept in ([], ["exp_avg", "step"]), pair
