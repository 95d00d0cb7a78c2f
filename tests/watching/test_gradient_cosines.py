"""Cosines between objectives' gradients against plain autograd."""

import types

import pytest
import torch
from test_engine import batches_of
from test_trainer import toy_trainer
from toy import gradients_alone, update_of

from flava_ds.families.flava.views import Kind
from flava_ds.watching.gradient_cosines import GradientCosines, cosines


def measured_against_autograd() -> tuple[dict, dict]:
    """The measured cosines and those of each loss taken alone."""
    trainer = toy_trainer("unused", objective_gradient_cosines_every=1)
    batch = batches_of(Kind.PAIR, 0, 1, 1)[0][0]
    denominators = {"mmm_text": torch.tensor(2.0), "itm": torch.tensor(4.0)}
    watch = next(watcher for watcher in trainer.watchers if isinstance(watcher, GradientCosines))
    found = watch.measure(update_of(batches=[batch], denominators=denominators, gradients=[None]))
    alone = gradients_alone(trainer.engine.module, batch, denominators)
    expected = {
        f"gradient_cosine/mmm_text/itm/{encoder}": float(
            torch.cosine_similarity(alone[encoder, "mmm_text"], alone[encoder, "itm"], dim=0)
        )
        for encoder, name in alone
        if name == "itm" and alone[encoder, "mmm_text"].any() and alone[encoder, "itm"].any()
    }
    return {name: float(value) for name, value in found.items()}, expected


def test_cosines_are_those_of_each_loss_alone_by_encoder(run_ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((found, expected),) = run_ranks(measured_against_autograd, 1)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6) and len(found) == 3


def of_gradients(first: dict, second: dict) -> dict:
    """Returns the cosines of two made-up objectives."""
    watch = GradientCosines.__new__(GradientCosines)
    watch._kinds, watch._earlier = 1, {}
    watch.gradients = lambda update: iter([("a", first), ("b", second)])
    return {name: float(value) for name, value in watch.measure(None).items()}


def test_only_parameters_that_both_reach_count():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([-4.0, 3.0])
    first = {"image": {0: one, 1: torch.ones(5)}, "text": {0: one}}
    second = {"image": {0: one + other, 2: torch.ones(5)}, "multimodal": {0: one}}
    # Of the two only place 0 of `image` is shared: the sum of two perpendicular vectors lies at 45 degrees.
    assert of_gradients(first, second) == pytest.approx({"gradient_cosine/a/b/image": 0.5**0.5})
    assert of_gradients({"image": {0: one}}, {"image": {0: -2 * one}}) == {"gradient_cosine/a/b/image": -1.0}
    assert of_gradients({"image": {0: one}}, {"image": {0: 0 * one}}) == {"gradient_cosine/a/b/image": 0.0}
    assert of_gradients({"image": {0: one}}, {"image": {1: one}}) == {}


def test_objectives_of_different_sources_are_compared_within_a_window():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([-4.0, 3.0])
    watch = GradientCosines(types.SimpleNamespace(stage=1), 10, None, kinds=2)
    steps = {
        0: ("pair", [("itm", {"image": {0: one}}), ("contrast", {"image": {0: one}, "text": {0: one}})]),
        3: ("image", [("mim", {"image": {0: one + other}})]),
        12: ("image", [("mim", {"image": {0: other}})]),  # another window
        15: ("pair", [("contrast", {"image": {0: one}})]),
    }
    found = {}
    for step, (kind, gradients) in steps.items():
        watch.gradients = lambda update, own=gradients: iter(own)
        assert watch.due(step, kind) and not watch.due(step, kind)
        found[step] = {name: round(float(value), 4) for name, value in watch.measure(None).items()}
    name = "gradient_cosine/contrast/mim/image"  # one name, whichever comes first
    assert found[0] == {"gradient_cosine/itm/contrast/image": 1.0}
    assert found[3] == {name: 0.7071, "gradient_cosine/itm/mim/image": 0.7071}
    assert found[12] == {} and found[15] == {name: 0.0}


def test_a_gradient_of_millions_of_numbers_has_a_cosine_of_1_with_itself():
    """On the host, torch's norms and products in fp32 leave out a part of as many terms."""
    gradient = {"text_encoder": {0: torch.randn(10_000_000)}}
    assert float(cosines(gradient, gradient)["text_encoder"]) == pytest.approx(1, abs=1e-6)
