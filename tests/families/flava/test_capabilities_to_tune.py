"""What a FLAVA gives to be fine-tuned: the same states as it has itself, with a graph, from weights of its
own."""

import numpy as np
import pytest
import torch
from families.family_checks import check_image_states
from sample_batches import CLS, SEP, tiny_config

from flava_ds.evaluation.protocols import PairStates, TextStates
from flava_ds.families.flava.capabilities import FlavaEmbedder, offers
from flava_ds.families.flava.task import build_task

TEXTS = [np.array([CLS, 110, 111, SEP]), np.array([CLS, 120, SEP]), np.array([CLS, 130, 131, 132, 133, SEP])]


@pytest.fixture(scope="module")
def model():
    return build_task(tiny_config()).model.eval()


@pytest.fixture(scope="module")
def pixels():
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=draw)


def test_a_flava_offers_both_kinds_of_states():
    config = tiny_config()
    [states] = [part for part in offers(build_task(config), config)[0] if isinstance(part, TextStates)]
    assert isinstance(states, PairStates)


def test_states_are_those_of_the_frozen_model(model, pixels):
    frozen = model.requires_grad_(False)
    part = FlavaEmbedder(frozen)
    texts = part.text_states()
    torch.testing.assert_close(texts(TEXTS), part.text_features(TEXTS), rtol=1e-5, atol=1e-6)
    check_image_states(part, part, pixels)
    [fused] = part.first_of_pairs(pixels, [TEXTS])
    pairs = part.pair_states()
    torch.testing.assert_close(pairs(TEXTS, pixels), fused, rtol=1e-5, atol=1e-6)
    assert texts.width == 24 == pairs.width and pairs.image_size == 12


def test_all_that_asks_for_a_gradient_gets_one_and_the_model_stays(model, pixels):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for encoder, inputs in (
        (FlavaEmbedder(model).text_states(), (TEXTS,)),
        (FlavaEmbedder(model).pair_states(), (TEXTS, pixels)),
    ):
        encoder(*inputs).square().sum().backward()
        trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
        assert trained and all(p.grad is not None for p in trained.values())
        rest = [name for name, p in encoder.named_parameters() if not p.requires_grad]
        assert all(name.split(".")[1] != "text_encoder" or "final_norm" in name for name in rest)
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_larger_images_have_interpolated_positions_as_in_hugging_face(model):
    transformers = pytest.importorskip("transformers")
    image = model.config.image
    shape = dict(hidden_size=24, image_size=12, patch_size=4, num_hidden_layers=1, num_attention_heads=3)
    theirs = transformers.FlavaImageModel(
        transformers.FlavaImageConfig(**shape, intermediate_size=40)
    ).embeddings
    table = model.image_encoder.position_embeddings.detach()
    theirs.position_embeddings.data.copy_(table[None])
    larger = FlavaEmbedder(model).pair_states(480 / 224)
    edge = larger.image_size
    assert edge == 24 and image.image_size == 12  # 25.7 in whole patches of 4
    with torch.no_grad():
        expected = theirs.interpolate_pos_encoding(torch.zeros(1, 1 + 36, 24), edge, edge)[0]
    ours = larger.model.image_encoder.position_embeddings
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
    alone = FlavaEmbedder(model).image_states(480 / 224)
    assert alone.image_size == edge and torch.equal(alone.encoder.position_embeddings, ours)
    pixels = torch.zeros(3, 3, edge, edge, dtype=torch.uint8)
    assert larger(TEXTS, pixels).shape == (3, 24)
    with pytest.raises(ValueError, match="expects 12 x 12"):
        FlavaEmbedder(model).pair_states()(TEXTS, pixels)
