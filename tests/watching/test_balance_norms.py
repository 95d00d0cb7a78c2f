"""The gradients that GradNorm is given, against plain autograd of each loss alone."""

import dataclasses

import pytest
import torch
from sample_batches import make_batch, tiny_config
from toy import update_of

from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.gradnorm import GradNormConfig
from flava_ds.objectives.uncertainty import UncertaintyConfig
from flava_ds.ranks.distributed import World
from flava_ds.watching.balance_norms import BalanceNorms


def test_norms_are_those_of_each_unweighted_loss_alone():
    config = tiny_config()
    task, batches = build_task(config), [make_batch(Kind.PAIR, config, seed=seed) for seed in range(2)]
    balance = task.states["balance"] = GradNormConfig(every_steps=1).build(task)
    balance.learned += 3  # what is measured does not depend on it
    world = World(0, 0, 1, torch.device("cpu"), host_group=None)
    watch = BalanceNorms(dataclasses.make_dataclass("Engine", ["module", "world"])(task, world))
    counts = {name: torch.tensor(float(7 + n)) for n, name in enumerate(task.active("pair"))}
    watch.before_update(update_of(kind="pair", batches=batches, denominators=counts, gradients=[None, None]))
    named = dict(task.named_parameters())
    layers = [named[name] for name in balance.layers["pair"]]
    for name, norm in zip(balance.names, balance.norms.tolist(), strict=True):
        expected = 0.0
        if name in counts:
            loss = sum(task.losses(batch, only={name})[name].sum for batch in batches) / counts[name]
            expected = float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, layers)]).norm())
            assert expected > 0
        assert norm == pytest.approx(expected, rel=1e-5)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_other_balances_and_other_steps_are_not_measured():
    task = build_task(tiny_config())
    engine = dataclasses.make_dataclass("Engine", ["module"])(task)
    task.states["balance"] = UncertaintyConfig().build(task)
    BalanceNorms(engine).before_update(update_of(kind="pair"))
    task.states["balance"] = GradNormConfig(every_steps=1).build(task)
    BalanceNorms(engine).before_update(update_of(kind="image"))
    assert task.states["balance"].norms is None
