"""Encoding a set in batches equals encoding each sample alone."""

import numpy as np
import pytest
import torch
from sample_runs import world

from flava_ds.batch import Batch
from flava_ds.evaluation import encoding
from flava_ds.evaluation.encoding import FrozenModel, text_batch
from flava_ds.families.flava.views import Kind, View


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def test_image_features_are_those_of_single_images_whatever_the_batch(inputs_and_module, monkeypatch):
    inputs, module = inputs_and_module
    monkeypatch.setattr(encoding, "BATCH_ROWS", 5)
    features = FrozenModel(module, inputs).images(inputs.unseen_style)
    pixels = inputs.unseen_style.pixels(inputs.config.model.image.image_size)
    for row in (0, 4, 5, 23):
        batch = Batch(kind=Kind.IMAGE, source="alone", size=1, tensors={"pixel_values": pixels[row : row + 1]})
        with torch.no_grad():
            encoded = module.model.encode(batch, {View.IMAGE})[View.IMAGE]
            torch.testing.assert_close(features.cls[row], encoded.first()[0])
            torch.testing.assert_close(features.embeddings[row], module.model.image_embeddings(encoded.first())[0])


def test_texts_do_not_depend_on_their_neighbours(inputs_and_module, monkeypatch):
    inputs, module = inputs_and_module
    model = FrozenModel(module, inputs)
    texts = ["kite", "a drawing of the bear and the moon", "owl"]
    alone = torch.cat([model.texts([text]) for text in texts])
    monkeypatch.setattr(encoding, "BATCH_ROWS", 2)
    torch.testing.assert_close(model.texts(texts), alone)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(3))


def test_features_of_a_set_are_computed_once_and_belong_to_that_set(inputs_and_module):
    inputs, module = inputs_and_module
    model = FrozenModel(module, inputs)
    assert model.images(inputs.unseen_style) is model.images(inputs.unseen_style)
    other = inputs.unseen_style.select(np.array([3]), inputs.unseen_style.name)
    torch.testing.assert_close(model.images(other).cls[0], model.images(inputs.unseen_style).cls[3])
    assert len(model.images(other).cls) == 1


def test_texts_are_packed_end_to_end():
    batch = text_batch([np.array([2, 7, 3]), np.array([2, 3])])
    assert batch["input_ids"].tolist() == [2, 7, 3, 2, 3] and batch["cu_seqlens"].tolist() == [0, 3, 5] and batch.numbers["max_seqlen"] == 3
    assert batch["cu_seqlens"].dtype == torch.int32
