"""What a trained ALBEF offers: vectors, log odds, predictions and states of the training model itself."""

import dataclasses
import math

import pytest
import torch
from families.albef.albef_peers import completed, make_batch, tiny_config
from families.bert.bert_peers import randomize
from families.family_checks import by_kind, check_image_states, texts_of

from flava_ds.evaluation.protocols import Embedder, ImageStates, Matcher, PairStates, Scorer
from flava_ds.families.albef.capabilities import offers
from flava_ds.families.albef.task import build_task


@pytest.fixture(scope="module")
def task():
    task = randomize(build_task(tiny_config())).double()
    task.states["teacher"].network.double()
    return task


def test_vectors_are_those_of_the_loss(task):
    batch, embedder = make_batch(), by_kind(*offers(task, tiny_config()))[Embedder]
    encoded = task.model.encode(batch, {"image", "text"})
    rows = task.model.embedding_rows(batch)
    image = embedder.project_images(embedder.image_features(batch["pixel_values"]))
    text = embedder.project_texts(embedder.text_features(texts_of(batch)))
    torch.testing.assert_close(image, task.model.image_embeddings(encoded["image"].rows(rows["image"])))
    torch.testing.assert_close(text, task.model.text_embeddings(encoded["text"].rows(rows["text"])))


def test_log_odds_are_those_of_the_loss(task):
    """Corrected for two of three pairs that do not match."""
    (batch,) = completed(task, make_batch())
    others = texts_of(batch, "negative_input_ids", "negative_cu_seqlens")
    matcher = by_kind(*offers(task, tiny_config()))[Matcher]
    own, text = matcher.log_odds(batch["pixel_values"], [texts_of(batch), others])
    (image,) = matcher.log_odds(batch["negative_pixel_values"], [texts_of(batch)])
    logits = torch.cat([own, image, text]) - math.log(2)
    expected = task.losses(batch, only={"itm"})["itm"].sum.item()
    signs = 2 * batch["itm_labels"] - 1
    found = torch.nn.functional.softplus(-signs * logits).sum().item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_predictions_are_those_of_the_loss(task):
    batch, scorer = make_batch(), by_kind(*offers(task, tiny_config()))[Scorer]
    texts = texts_of(batch, "input_ids_masked")
    predicted = scorer.read(texts, batch["pixel_values"]).tokens(batch["mlm_rows"])
    loss, _ = predicted.loss(batch["mlm_labels"])
    plain = tiny_config()
    mlm = dataclasses.replace(plain.objectives["mlm"], distillation=0.0)
    alone = build_task(dataclasses.replace(plain, objectives={"mlm": mlm})).double()
    alone.model, alone.objectives["mlm"].head = task.model, task.objectives["mlm"].head
    expected = alone.losses(batch, only={"mlm"})["mlm"].sum.item()
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="give both"):
        scorer.read(texts)


def test_states_to_be_fine_tuned_have_a_graph(task):
    batch, parts = make_batch(), by_kind(*offers(task, tiny_config()))
    states = parts[PairStates]
    check_image_states(parts[Embedder], parts[ImageStates], batch["pixel_values"])
    copy = states.pair_states()
    found = copy(texts_of(batch, "input_ids_masked"), batch["pixel_values"])
    view = "multimodal_masked"
    first = task.model.encode(batch, {view})[view].rows(task.model.first_rows(view, batch))
    torch.testing.assert_close(found, first)
    found.square().sum().backward()
    assert (copy.width, copy.image_size) == (24, 12)
    assert all((own.grad is not None) == own.requires_grad for own in copy.parameters())
    assert all(own.grad is None for own in task.model.parameters())
    larger = states.pair_states(2.0)
    assert larger.image_size == 24
    assert larger(texts_of(batch), torch.zeros(4, 3, 24, 24, dtype=torch.uint8)).shape == found.shape


def test_without_its_objectives_it_says_why():
    config = tiny_config()
    alone = dataclasses.replace(config, objectives={"itc": config.objectives["itc"]})
    _, lacks = offers(build_task(alone), alone)
    assert "no matching head" in lacks["Matcher"] and "no masked objective" in lacks["Scorer"]
