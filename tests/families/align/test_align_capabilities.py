"""What a trained ALIGN offers: vectors and states of the training model itself."""

import torch
from families.align.align_peers import make_batch, our_model, their_align, tiny_config
from families.family_checks import by_kind, check_image_states, texts_of

from flava_ds.evaluation.protocols import Embedder, ImageStates, PairStates, TextStates
from flava_ds.families.align.capabilities import offers


def test_vectors_are_those_of_the_loss_and_states_have_a_graph():
    config, batch = tiny_config(), make_batch((5, 7, 9))
    task = our_model(config, their_align(config)).eval()
    parts, texts = by_kind(*offers(task, config)), texts_of(batch)
    embedder = parts[Embedder]
    encoded = task.model.encode(batch, ("image", "text"))
    rows = {view: own.rows(task.model.first_rows(view, batch)) for view, own in encoded.items()}
    images, words = embedder.image_features(batch["pixel_values"]), embedder.text_features(texts)
    torch.testing.assert_close(images, rows["image"].detach())
    torch.testing.assert_close(words, rows["text"].detach())
    torch.testing.assert_close(
        embedder.project_texts(words), task.model.text_embeddings(rows["text"]).detach()
    )
    torch.testing.assert_close(embedder.project_images(images).norm(dim=1), torch.ones(3))

    of_texts, of_pairs = parts[TextStates].text_states(), parts[PairStates].pair_states(1.5)
    torch.testing.assert_close(of_texts(texts).detach(), words)
    states = of_pairs.train()(texts, batch["pixel_values"])  # three samples, no whole group
    assert (of_texts.width, of_pairs.width, of_pairs.image_size) == (24, 24 + 80, 96)
    torch.testing.assert_close(states.detach(), torch.cat([images, words], dim=1))
    states.square().sum().backward()
    assert all(own.grad is not None for own in of_pairs.parameters())
    assert all(own.grad is None for own in task.model.parameters())
    check_image_states(embedder, parts[ImageStates], batch["pixel_values"])
