"""LAMB against its published algorithm in fp64, and its norms of whole parameters in every ZeRO stage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_engine import batches_of, run_steps
from toy import KINDS, Toy, full_weights, objective_counts, partition_everything, toy_config

from flava_ds.config.options import override
from flava_ds.optimizers.base import Place, Places, activate
from flava_ds.optimizers.lamb import Lamb, LambConfig
from flava_ds.ranks.distributed import start
from flava_ds.recipes import RECIPES
from flava_ds.training.engine import Engine

CONFIG = LambConfig(lr=0.1, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.3)


class Published:
    """One parameter, by the paper's algorithm 2."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.updates = weight.astype(np.float64), 0
        self.average, self.squares = np.zeros_like(self.weight), np.zeros_like(self.weight)

    def move(self, gradient: np.ndarray, config: LambConfig, lr: float, decay: float, adapts: bool) -> None:
        first, second = config.betas
        self.updates += 1
        self.average = first * self.average + (1 - first) * gradient
        self.squares = second * self.squares + (1 - second) * gradient**2
        update = self.average / (1 - first**self.updates)
        update = update / (np.sqrt(self.squares / (1 - second**self.updates)) + config.eps)
        update = update + decay * self.weight
        weights, norm = np.linalg.norm(self.weight), np.linalg.norm(update)
        ratio = weights / norm if adapts and weights > 0 and norm > 0 else 1.0
        self.weight = self.weight - lr * ratio * update


def random(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def groups_of(weights: list[torch.nn.Parameter]) -> list[dict]:
    """Returns a group for each parameter: an image step's with decay, a text step's without."""
    return [
        {
            "params": [weight],
            "kinds": [kind],
            "active": True,
            "weight_decay": decay,
            "decayed": decay > 0,
            "lr": 0.1,
        }
        for weight, kind, decay in zip(weights, ("image", "text"), (0.3, 0.0), strict=True)
    ]


def test_updates_are_the_published_ones_and_sleeping_groups_stay():
    weights = [torch.nn.Parameter(random(0)), torch.nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))]
    lamb, expected = (
        Lamb(groups_of(weights), CONFIG),
        [Published(weight.detach().numpy()) for weight in weights],
    )
    for step, kind in enumerate(("image", "text", "image", "image", "text")):
        activate(lamb, kind, "frozen")
        for number in range(2):
            weights[number].grad = random(10 * step + number + 1)
        lamb.step()
        moved = ("image", "text").index(kind)
        gradient = random(10 * step + moved + 1).numpy()
        expected[moved].move(gradient, CONFIG, 0.1, (0.3, 0.0)[moved], adapts=moved == 0)
    for weight, plain, updates in zip(weights, expected, (3, 2), strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), plain.weight, rtol=0, atol=1e-13)
        assert lamb.updates_of({}, weight) == updates == plain.updates


def test_updates_are_timms():
    """Of decayed parameters, one of them zeros, and of one without decay, whose ratio is 1 there too."""
    optimizers = pytest.importorskip("timm.optim")
    starts = random(0), torch.zeros(5, 3, dtype=torch.float64), random(1)
    ours, theirs = ([torch.nn.Parameter(own.clone()) for own in starts] for _ in range(2))
    decays = (0.3, 0.3, 0.0)
    groups = [
        {"params": [weight], "kinds": ["image"], "active": True, "weight_decay": decay, "decayed": decay > 0}
        for weight, decay in zip(ours, decays, strict=True)
    ]
    lamb = Lamb(groups, CONFIG)
    plain = [{"params": [own], "weight_decay": decay} for own, decay in zip(theirs, decays, strict=True)]
    peer = optimizers.Lamb(plain, lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps, max_grad_norm=None)
    for step in range(6):
        activate(lamb, "image", "frozen")
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            for weight in pair:
                weight.grad = random(10 * step + number + 3)
        lamb.step()
        peer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert all(
        float((own.detach() - start).abs().max()) > 0.01 for own, start in zip(ours, starts, strict=True)
    )


def test_the_flag_skips_on_the_device_and_the_scale_divides():
    ours, theirs = ([torch.nn.Parameter(random(seed)) for seed in (0, 1)] for _ in range(2))
    one, two = Lamb(groups_of(ours), CONFIG), Lamb(groups_of(theirs), CONFIG)
    for step, bad in enumerate((True, False, True, False)):
        one.found_inf, one.grad_scale = torch.tensor(float(bad)), torch.tensor(4.0)
        for number in range(2):
            own = random(10 * step + number + 2)
            ours[number].grad = torch.full_like(own, float("nan")) if bad else 4.0 * own
            theirs[number].grad = own
        with pytest.MonkeyPatch.context() as patch:
            for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy"):
                patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits for the device"))
            one.step()
        if not bad:
            two.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) and one.updates_of({}, a) == 2
        assert all(torch.equal(one.state[a][key], two.state[b][key]) for key in Lamb.moments)


def test_a_tensor_that_the_engine_has_not_described_is_never_scaled_as_a_whole():
    weights = [torch.nn.Parameter(random(0)), torch.nn.Parameter(random(1))]
    lamb = Lamb(groups_of(weights), CONFIG)
    lamb.hold({id(weights[1]): Places(1, (Place(0, 0, 15),))}, None)
    weights[0].grad = random(2)
    with pytest.raises(KeyError):
        lamb.step()


def test_recipes_take_it_by_its_name():
    changed = override(RECIPES["demo"](), ["--optimizer", "lamb"]).optimizer
    # what demo sets; eps and weight_decay are LAMB's own
    assert changed == LambConfig(lr=5e-4, betas=(0.9, 0.98), decay_norm_and_bias=False)


def distances(stages: tuple[str, ...]) -> dict[str, float]:
    """On every rank: how far each stage's weights are from plain updates of whole parameters."""
    world, found = start(60), {}
    lamb = LambConfig(lr=1e-2, weight_decay=0.1, decay_norm_and_bias=False)
    for stage in stages:
        config = dataclasses.replace(toy_config(stage, gradient_accumulation_steps=1), optimizer=lamb)
        engine = Engine(Toy(), config, world)
        run_steps(engine, config, world, KINDS)
        ours, expected = full_weights(engine), reference(config, world.size)
        found[stage] = max(float((ours[name] - expected[name]).abs().max()) for name in ours)
    return found


def reference(config, ranks: int) -> dict[str, torch.Tensor]:
    """One process, whole batches, the published algorithm; parameters without a gradient stay."""
    module = Toy()
    module.logit_scale = torch.nn.Parameter(module.logit_scale.detach().reshape(1))
    plain = {name: Published(weight.detach().numpy()) for name, weight in module.named_parameters()}
    for step, kind in enumerate(KINDS):
        batches = [batch for row in batches_of(kind, step, ranks, 1) for batch in row]
        denominators = {name: torch.tensor(float(n)) for name, n in objective_counts(module, batches).items()}
        module.zero_grad()
        for batch in batches:
            module("step", batch, denominators).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.training.gradient_clipping)
        for name, weight in module.named_parameters():
            if weight.grad is not None:
                decays = weight.ndim >= 2 and "logit_scale" not in name
                decay = config.optimizer.weight_decay if decays else 0.0
                lr = config.learning_rate(step)
                plain[name].move(weight.grad.double().numpy(), config.optimizer, lr, decay, decays)
                weight.data.copy_(torch.from_numpy(plain[name].weight))
    return {name: weight.detach() for name, weight in module.named_parameters()}


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_stage_scales_by_the_norms_of_whole_parameters(run_ranks, tmp_path, ranks):
    stages = ("zero0", "zero1", "zero2", partition_everything(tmp_path))
    for found in run_ranks(distances, ranks, stages):
        assert len(found) == 4 and max(found.values()) < 1e-5, found
