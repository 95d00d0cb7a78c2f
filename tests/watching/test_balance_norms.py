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


@pytest.mark.parametrize(
    "dtype, scale, terms, rel", [("float32", 1.0, 7, 1e-5), ("float16", 2.0**16, 70_000, 5e-3)]
)
def test_norms_are_those_of_each_unweighted_loss_alone(dtype, scale, terms, rel):
    """In fp16 without the loss scale, means over so many terms have gradients of 0 or 4 % off."""
    config = tiny_config()
    task, batches = build_task(config), [make_batch(Kind.PAIR, config, seed=seed) for seed in range(2)]
    balance = task.states["balance"] = GradNormConfig(every_steps=1).build(task)
    balance.learned += 3  # what is measured does not depend on it
    counts = {name: torch.tensor(float(terms + n)) for n, name in enumerate(task.active("pair"))}
    named, expected = dict(task.named_parameters()), {}
    layers = [named[name] for name in balance.layers["pair"]]
    for name, count in counts.items():
        loss = sum(task.losses(batch, only={name})[name].sum for batch in batches) / count
        expected[name] = float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, layers)]).norm())
    world = World(0, 0, 1, torch.device("cpu"), host_group=None)
    engine = dataclasses.make_dataclass("Engine", ["module", "world", "loss_scale"])
    watch = BalanceNorms(engine(task.to(getattr(torch, dtype)), world, scale))
    watch.before_update(update_of(kind="pair", batches=batches, denominators=counts, gradients=[None, None]))
    found = dict(zip(balance.names, balance.norms.tolist(), strict=True))
    assert found == pytest.approx(dict.fromkeys(balance.names, 0.0) | expected, rel=rel)
    assert min(expected.values()) > 0 and all(parameter.grad is None for parameter in task.parameters())


def test_other_balances_and_other_steps_are_not_measured():
    task = build_task(tiny_config())
    engine = dataclasses.make_dataclass("Engine", ["module"])(task)
    task.states["balance"] = UncertaintyConfig().build(task)
    BalanceNorms(engine).before_update(update_of(kind="pair"))
    task.states["balance"] = GradNormConfig(every_steps=1).build(task)
    BalanceNorms(engine).before_update(update_of(kind="image"))
    assert task.states["balance"].norms is None
