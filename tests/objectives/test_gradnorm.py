"""GradNorm against its algorithm by hand, the layers that it measures, and a run in several topologies."""

import dataclasses

import numpy as np
import pytest
import torch
from sample_batches import tiny_config
from stranger_runs import STEPS, prove, stranger_config

from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.task import build_task
from flava_ds.objectives.gradnorm import LEAST, GradNorm, GradNormConfig, shared_layers
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastiveConfig

LAYERS = {"pair": ("layer",)}


def balance_of(weights: list[float], **settings) -> GradNorm:
    return GradNorm(dict(zip("abcd", weights, strict=False)), GradNormConfig(**settings), LAYERS)


def test_one_step_by_hand():
    balance = balance_of([1.0, 3.0, 5.0], lr=0.1, asymmetry=1.0)
    present = torch.tensor([True, True, False])
    balance.follow(torch.tensor([1.0, 2.0, 0.0]), present)  # not measured: only the first losses are noted
    assert balance.weights().tolist() == [1, 3, 5] and balance.first_losses.tolist() == [1, 2, 0]
    balance.norms = torch.tensor([2.0, 1.0, 0.0])
    balance.follow(torch.tensor([0.5, 2.0, 0.0]), present)
    # Pulls 2 and 3, mean 2.5. Losses left 1/2 and 1, mean 3/4: rates 2/3 and 4/3, targets 1.67 and 3.33. So
    # the first pulls too hard: its weight falls by 0.1 * 2 / 2.5, the other's rises by 0.1 * 1 / 2.5.
    assert balance.weights().tolist() == pytest.approx([0.92 * 4 / 3.96, 3.04 * 4 / 3.96, 5.0])
    assert balance.first_losses.tolist() == [1, 2, 0] and balance.norms is None


def test_pulls_become_equal_and_weights_keep_their_sum_and_sign():
    balance = balance_of([1.0, 1.0, 1.0], lr=0.002, asymmetry=0.0)
    for _ in range(2000):
        balance.norms = torch.tensor([4.0, 1.0, 0.2])
        balance.follow(torch.ones(3), torch.ones(3, dtype=torch.bool))
    pulls = balance.weights() * torch.tensor([4.0, 1.0, 0.2])
    assert pulls.tolist() == pytest.approx([float(pulls.mean())] * 3, rel=0.1)
    assert float(balance.weights().sum()) == pytest.approx(3, rel=1e-5)
    swift = balance_of([1.0, 1.0], lr=1.0, asymmetry=0.0)
    swift.norms = torch.tensor([9.0, 1.0])
    swift.follow(torch.ones(2), torch.ones(2, dtype=torch.bool))
    assert 0 < float(swift.weights().min()) < 2 * LEAST


def test_steps_without_terms_change_nothing():
    balance = balance_of([1.0, 2.0], asymmetry=1.5)
    balance.norms = torch.zeros(2)
    balance.follow(torch.zeros(2), torch.tensor([False, False]))
    assert balance.weights().tolist() == [1, 2] and balance.first_losses.tolist() == [0, 0]


def test_an_objective_whose_gradient_overflows_keeps_its_weight():
    balance, pair = balance_of([1.0, 3.0, 5.0, 1.0], lr=0.1), balance_of([1.0, 5.0], lr=0.1)
    balance.norms, pair.norms = torch.tensor([2.0, torch.inf, 1.0, torch.nan]), torch.tensor([2.0, 1.0])
    for own in (balance, pair):
        own.follow(torch.ones_like(own.norms), own.norms.bool())
    first, third = pair.weights().tolist()
    assert balance.weights().tolist() == [first, 3, third, 1] and first != 1


def test_measured_steps_are_drawn_by_their_number_alone():
    balance = balance_of([1.0, 1.0], every_steps=10)
    measured = [step for step in range(4000) if balance.measured_layers(step, "pair")]
    assert 340 < len(measured) < 460 and len({step % 10 for step in measured}) == 10
    assert not any(balance.measured_layers(step, "image") for step in measured)
    assert np.mean([bool(balance_of([1.0], every_steps=1).measured_layers(s, "pair")) for s in range(9)]) == 1


def test_the_layers_are_the_last_matrices_that_all_objectives_of_a_step_reach():
    task = build_task(tiny_config())
    text, image = ("model.text_encoder.transformer.blocks.2", "model.image_encoder.transformer.blocks.1")
    assert shared_layers(task) == {"pair": (f"{image}.mlp_down.weight", f"{text}.mlp_down.weight")}


def test_objectives_without_a_step_in_common_are_refused():
    every = flava_objectives()
    apart = build_task(tiny_config(objectives={name: every[name] for name in ("mim", "mlm")}))
    with pytest.raises(ConfigError, match="no kind of step has two; use --balance uncertainty"):
        GradNormConfig().build(apart)
    task = build_task(tiny_config())
    for parameter in (*task.model.image_encoder.parameters(), *task.model.text_encoder.parameters()):
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="itm.* of pair steps share no trained layer"):
        GradNormConfig().build(task)
    zero3 = dataclasses.make_dataclass("Engine", ["stage"])(3)
    with pytest.raises(ConfigError, match="ZeRO-3 keeps no full gradients; use ZeRO 0, 1 or 2"):
        balance_of([1.0]).begin("balance", zero3)


@pytest.mark.distributed
@pytest.mark.slow
def test_weights_depend_neither_on_ranks_nor_on_micro_batches(run_ranks, tmp_path):
    whole = flava_objectives()
    # every caption once: of two that are the same, rounding decides which is ranked first
    itm = dataclasses.replace(whole["itm"], mismatch_probability=0.0)
    objectives = {"sigmoid": SigmoidContrastiveConfig(), "mmm_text": whole["mmm_text"], "itm": itm}
    settings = GradNormConfig(every_steps=1)
    config = stranger_config(tmp_path, name="gradnorm", objectives=objectives, balance=settings)
    curve = prove(run_ranks, config, zero3=False)
    for line in curve:
        weights = [line[f"weight/{name}"] for name in objectives]
        assert sum(weights) == pytest.approx(sum(own.weight for own in objectives.values()), rel=1e-5)
    assert len({line["weight/itm"] for line in curve}) == STEPS
