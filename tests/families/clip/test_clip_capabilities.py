"""What a trained CLIP offers: the vectors that its loss compares, from pictures and texts alone."""

import torch
from families.clip.peers import make_batch, tiny_config
from families.family_checks import check_image_states, texts_of

from flava_ds.families.clip.capabilities import offers
from flava_ds.families.clip.task import build_task


def test_vectors_are_those_that_the_loss_compares():
    config = tiny_config()
    task, batch = build_task(config), make_batch(config)
    [embedder], lacks = offers(task, config)
    texts = texts_of(batch)
    images = embedder.project_images(embedder.image_features(batch["pixel_values"]))
    words = embedder.project_texts(embedder.text_features(texts))
    with torch.no_grad():
        features = task("features", batch)["global_contrastive"].samples
    torch.testing.assert_close(images, features["image"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(words, features["text"], rtol=1e-5, atol=1e-6)
    assert not images.requires_grad and lacks.keys() == {"Matcher", "Scorer"}


def test_features_come_before_the_projection():
    config = tiny_config()
    [embedder], _ = offers(build_task(config), config)
    batch = make_batch(config, (4, 4))
    texts = [text.numpy() for text in batch["input_ids"].split(4)]
    assert embedder.image_features(batch["pixel_values"]).shape == (2, config.model.image.hidden_size)
    assert embedder.text_features(texts[:1]).shape == (1, config.model.text.hidden_size)


def test_states_to_be_fine_tuned_are_the_same_with_a_graph():
    config = tiny_config()
    [states], _ = offers(build_task(config), config)
    batch = make_batch(config, (4, 3))
    texts, pixels = [text.numpy() for text in batch["input_ids"].split([4, 3])], batch["pixel_values"]
    image, text = states.image_features(pixels), states.text_features(texts)
    torch.testing.assert_close(states.text_states()(texts), text, rtol=1e-5, atol=1e-6)
    pairs = states.pair_states()
    found = pairs(texts, pixels)
    torch.testing.assert_close(found, torch.cat([image, text], dim=1), rtol=1e-5, atol=1e-6)
    found.square().sum().backward()
    assert found.shape[1] == pairs.width and all(p.grad is not None for p in pairs.parameters())
    check_image_states(states, states, pixels)
    larger = states.pair_states(2.0)
    edge = 2 * config.model.image_size
    assert larger.image_size == edge
    assert larger(texts, torch.zeros(2, 3, edge, edge, dtype=torch.uint8)).shape == found.shape
