"""Sets are encoded once, in batches that change nothing, and what a model lacks is named in one line."""

import threading

import numpy as np
import pytest
import torch
from evaluation.color_world import KnowsColors, color_model
from sample_runs import frozen, world

from flava_ds.errors import DataError
from flava_ds.evaluation import frozen_model
from flava_ds.evaluation.frozen_model import Lacking, ahead
from flava_ds.evaluation.protocols import Embedder, ImageFeatures, Matcher, Scorer, TextFeatures


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def test_image_features_are_those_of_single_images_whatever_the_batch(inputs_and_module, monkeypatch):
    inputs, module = inputs_and_module
    monkeypatch.setattr(frozen_model, "BATCH_ROWS", 5)
    model = frozen(inputs, module)
    features, embeddings = (
        f(inputs.unseen_style, "a test") for f in (model.image_features, model.image_embeddings)
    )
    pixels = inputs.unseen_style.pixels(inputs.config.model.image.image_size)
    for row in (0, 4, 5, 23):
        with torch.no_grad():
            [encoded] = module.model.image_encoder(pixels[row : row + 1])
            torch.testing.assert_close(features[row], encoded.first()[0])
            torch.testing.assert_close(embeddings[row], module.model.image_embeddings(encoded.first())[0])


def test_texts_do_not_depend_on_their_neighbours(inputs_and_module, monkeypatch):
    model = frozen(*inputs_and_module)
    texts = ["kite", "a drawing of the bear and the moon", "owl"]
    alone = torch.cat([model.text_embeddings([text], "a test") for text in texts])
    monkeypatch.setattr(frozen_model, "BATCH_ROWS", 2)
    torch.testing.assert_close(model.text_embeddings(texts, "a test"), alone)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(3))


def test_a_set_is_encoded_once_and_its_features_are_its_own(inputs_and_module):
    inputs, module = inputs_and_module
    model = frozen(inputs, module)
    first = model.image_features(inputs.unseen_style, "a test")
    assert model.image_features(inputs.unseen_style, "another") is first
    other = inputs.unseen_style.select(np.array([3]), inputs.unseen_style.name)
    torch.testing.assert_close(model.image_features(other, "a test")[0], first[3])


def test_captions_and_texts_have_their_own_lengths(inputs_and_module):
    inputs, module = inputs_and_module
    model, long = frozen(inputs, module), " ".join(["kite"] * 40)
    assert model.most_tokens == {"pair": 16, "text": 20}
    cut = " ".join(["kite"] * 18)  # with CLS and SEP 20 tokens
    assert torch.equal(model.text_features([long], "a test"), model.text_features([cut], "a test"))
    assert not torch.equal(
        model.text_features([long], "a test"), model.text_features([long], "a test", "pair")
    )


class SeesOnly:
    """An image encoder without anything else."""

    def image_features(self, pixels):
        return pixels.float().flatten(1)


def test_what_is_lacking_is_one_line_with_capability_task_and_family():
    model = color_model(SeesOnly(), reasons={"Matcher": "its head was not trained"})
    assert isinstance(model.need(ImageFeatures, "task x"), SeesOnly)
    with pytest.raises(Lacking) as lacking:
        model.need(Embedder, "task retrieval")
    assert str(lacking.value) == (
        "task retrieval needs Embedder (image and text vectors in one space), which colors (family "
        "'color') does not offer: models of family 'color' have none"
    )
    with pytest.raises(Lacking, match="task y needs Matcher .* its head was not trained"):
        model.need(Matcher, "task y")
    with pytest.raises(Lacking, match="TextFeatures"):
        model.text_features(["red"], "task z")


def test_features_that_are_no_numbers_are_refused():
    class Diverged(KnowsColors):
        def text_features(self, ids):
            return super().text_features(ids) * torch.tensor([[1.0], [float("nan")]])

    with pytest.raises(DataError, match="colors: 1 of 2 features or scores hold infinities or no numbers"):
        color_model(Diverged()).text_features(["red", "blue"], "a test")


def test_a_capability_is_found_by_its_methods():
    model = color_model(SeesOnly(), KnowsColors())
    assert isinstance(model.need(Embedder, "a test"), KnowsColors) and isinstance(
        model.need(TextFeatures, "a test"), KnowsColors
    )
    with pytest.raises(Lacking):
        model.need(Scorer, "a test")


def test_work_ahead_keeps_the_order_and_passes_errors_on(monkeypatch):
    monkeypatch.setattr(frozen_model.os, "sched_getaffinity", lambda _: set(range(4)))
    threads = set()

    def make(number):
        threads.add(threading.get_ident())
        if number == 30:
            raise ValueError("thirty")
        return number * 2

    assert list(ahead(make, range(25))) == [2 * n for n in range(25)] and threading.get_ident() not in threads
    with pytest.raises(ValueError, match="thirty"):
        list(ahead(make, range(40)))
    assert list(ahead(make, [])) == [] and list(ahead(make, [3])) == [6]
