"""What a trained ViLT offers: log odds, predictions and states of the training model itself."""

import dataclasses
import math

import pytest
import torch
from families.family_checks import by_kind, texts_of
from families.vilt.vilt_peers import VIEW, make_batch, randomize, tiny_config

from flava_ds.evaluation.protocols import Matcher, PairStates, Scorer
from flava_ds.families.vilt.capabilities import offers
from flava_ds.families.vilt.task import build_task
from flava_ds.objectives.itm import ImageTextMatchingConfig


@pytest.fixture(scope="module")
def task():
    return randomize(build_task(tiny_config())).double()


def test_log_odds_are_those_of_the_loss(task):
    batch = make_batch()
    texts = texts_of(batch, "matching_input_ids", "matching_cu_seqlens")
    matcher = by_kind(*offers(task, tiny_config()))[Matcher]
    one, other = matcher.log_odds(batch["pixel_values"], [texts, texts[::-1]])
    signs = 2 * batch["itm_labels"] - 1
    expected = task.losses(batch, only={"itm"})["itm"].sum.detach()
    assert float(torch.nn.functional.softplus(-signs * one).sum()) == pytest.approx(float(expected), rel=1e-6)
    assert not torch.allclose(one, other)
    rare = tiny_config(objectives={"itm": ImageTextMatchingConfig(mismatch_probability=0.1)})
    alone = build_task(rare).double()
    alone.model, alone.objectives["itm"] = task.model, task.objectives["itm"]
    corrected = by_kind(*offers(alone, rare))[Matcher].log_odds(batch["pixel_values"], [texts])[0]
    torch.testing.assert_close(one - corrected, torch.full_like(one, math.log(9)))


def test_predictions_are_those_of_the_loss(task):
    batch = make_batch()
    scorer = by_kind(*offers(task, tiny_config()))[Scorer]
    texts = texts_of(batch, "input_ids_masked", "cu_seqlens")
    predicted = scorer.read(texts, batch["pixel_values"]).tokens(batch["mlm_rows"])
    loss, _ = predicted.loss(batch["mlm_labels"])
    expected = task.losses(batch, only={"mmm_text"})["mmm_text"].sum.detach()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    logits = torch.nn.functional.cross_entropy(predicted.logits(), batch["mlm_labels"], reduction="sum")
    assert float(logits) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="words of a text with its image"):
        scorer.read(texts)


def test_states_to_be_fine_tuned_are_the_pooled_ones_with_a_graph(task):
    batch = make_batch()
    texts = texts_of(batch, "input_ids_masked", "cu_seqlens")
    states = by_kind(*offers(task, tiny_config()))[PairStates]
    copy = states.pair_states()
    found = copy(texts, batch["pixel_values"])
    first = task.model.encode(batch, {VIEW})[VIEW].rows(task.model.first_rows(VIEW, batch))
    torch.testing.assert_close(found, task.model.pooled(first))
    found.square().sum().backward()
    assert (copy.width, copy.image_size) == (24, 12)
    assert all(own.grad is not None for own in copy.parameters())
    assert all(own.grad is None for own in task.model.parameters())
    larger = states.pair_states(2.0)
    assert larger.image_size == 16, "4 x 4 patches: at most 20"
    assert larger(texts, torch.zeros(4, 3, 16, 16, dtype=torch.uint8)).shape == found.shape


def test_without_its_objectives_it_says_why(task):
    alone = dataclasses.replace(tiny_config(), objectives={"wpa": tiny_config().objectives["wpa"]})
    _, lacks = offers(build_task(alone), alone)
    assert "no matching head" in lacks["Matcher"] and "no masked objective" in lacks["Scorer"]
    assert "neither alone" in lacks["Embedder"]
