"""Uncertainty weighting against the published loss, and a run in every topology."""

import dataclasses
import math

import pytest
import torch
from sample_batches import make_batch, tiny_config
from stranger_runs import STEPS, numbers_of, prove, split, stranger_config

from flava_ds import config as configuration
from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.dino import DinoConfig
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastiveConfig
from flava_ds.objectives.uncertainty import Uncertainty, UncertaintyConfig
from flava_ds.report.page import write_report


def test_steps_follow_the_gradient_of_the_published_loss():
    balance = Uncertainty({"a": 2.0, "b": 1.0, "c": 5.0}, lr=0.1)
    means, present = torch.tensor([4.0, 0.5, 0.0]), torch.tensor([True, True, False])
    s = torch.zeros(3, requires_grad=True)
    for step in range(3):
        loss = ((-s).exp() * means + s / 2)[present].sum()
        (gradient,) = torch.autograd.grad(loss, s)
        s = (s - 0.1 * gradient).detach().requires_grad_()
        balance.follow(means, present)
        torch.testing.assert_close(balance.log_variances, s.detach())
        if step == 0:  # by hand: 0.1 * (4 - 1/2), and 0.1 * (1/2 - 1/2)
            assert balance.log_variances.tolist() == pytest.approx([0.35, 0.0, 0.0])
            assert balance.weights().tolist() == pytest.approx([2 * math.exp(-0.35), 1.0, 5.0])
    for _ in range(500):
        balance.follow(means, present)
    # Every weighted loss of an objective that takes part comes to a half of its configured weight.
    assert (balance.weights() * means).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)


def test_the_loss_of_a_step_has_the_weights_of_now():
    config = tiny_config()
    task, batch = build_task(config), make_batch(Kind.PAIR, config)
    counts = {name: torch.tensor(float(max(1, n))) for name, n in task.counts(batch).items()}
    plain = task.step(batch, counts)
    balance = task.states["balance"] = UncertaintyConfig(lr=0.1).build(task)
    balanced = task.step(batch, counts)
    torch.testing.assert_close(balanced.loss, plain.loss)
    balance.log_variances += torch.arange(float(len(balance.names)))
    expected = sum(
        weight * plain.sums[f"{name}/loss"] / counts[name]
        for name, weight in zip(balance.names, balance.weights(), strict=True)
        if name in counts
    )
    torch.testing.assert_close(task.step(batch, counts).loss, expected)
    sums = [float(plain.sums.get(f"{name}/loss", 0.0)) for name in balance.names]
    assert balanced.statistics["balance/losses"].tolist() == pytest.approx(sums)
    assert "balance/losses" not in plain.statistics


def test_a_balance_of_one_objective_is_refused():
    two = {"itm": flava_objectives()["itm"], "dino": DinoConfig(koleo_weight=0.1)}
    with pytest.raises(ConfigError, match="the size of losses, but objectives.dino may be negative"):
        UncertaintyConfig().check(tiny_config(objectives=two))
    one = {"itm": flava_objectives()["itm"]}
    with pytest.raises(ConfigError, match="balance uncertainty needs at least two .* this run has itm alone"):
        configuration.check(tiny_config(objectives=one, balance=UncertaintyConfig()))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_balanced_run_is_the_same_in_every_topology(run_ranks, tmp_path):
    whole = flava_objectives()
    # every caption once: of two that are the same, rounding decides which is ranked first
    itm = dataclasses.replace(whole["itm"], mismatch_probability=0.0)
    objectives = {"sigmoid": SigmoidContrastiveConfig(), "mmm_text": whole["mmm_text"], "itm": itm}
    config = stranger_config(tmp_path, name="balanced", objectives=objectives, balance=UncertaintyConfig())
    curve = prove(run_ranks, config, zero3=False)
    first = [curve[0][f"weight/{name}"] for name in objectives]
    assert first == [
        pytest.approx(own.weight * math.exp(0.01 * (curve[0][f"loss/{name}"] - 0.5) * -1), rel=1e-5)
        for name, own in objectives.items()
    ]
    assert len({line["weight/itm"] for line in curve}) == STEPS
    saved = numbers_of(split(config, "zero1_whole", "zero1", 2))["state/balance/log_variances"]
    assert saved.shape == (3,) and saved.abs().min() > 0
    page = write_report(split(config, "alone_1", "zero1", 1).run_path).read_text(encoding="utf-8")
    assert f"Image-text matching: weight from {curve[0]['weight/itm']:.3g}" in page
