"""What a FLAVA offers is what its encoders and heads say, and satisfies the protocols that evaluations ask
by.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sample_batches import CLS, SEP, tiny_config

from flava_ds.evaluation.protocols import (
    CAPABILITIES,
    Embedder,
    ImageFeatures,
    ImageStates,
    Matcher,
    PairStates,
    Scorer,
    TextFeatures,
    TextStates,
)
from flava_ds.families.flava.capabilities import offers
from flava_ds.families.flava.task import build_task
from flava_ds.layers.pairs import SequenceLayout
from flava_ds.layers.words import pack

TEXTS = [np.array([CLS, 110, 111, SEP]), np.array([CLS, 120, SEP]), np.array([CLS, 130, 131, 132, 133, SEP])]
PATCHES = 9


@pytest.fixture(scope="module")
def module():
    return build_task(tiny_config()).eval()


@pytest.fixture(scope="module")
def parts(module):
    return {type(part).__name__: part for part in offers(module, tiny_config())[0]}


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(
        0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def fused(module, pixels, text, mask=None):
    """One pair on its own: [2+n+t d] after the final LayerNorm."""
    layout = SequenceLayout(PATCHES, torch.tensor([0, len(text)], dtype=torch.int32), len(text))
    [image] = module.model.image_encoder(pixels[None], mask, clean=mask is None)
    [encoded] = module.model.text_encoder([torch.from_numpy(text)], layout.text_cu_seqlens, len(text))
    return module.model.fuse(image.packed, encoded.packed, layout).last_hidden_state()


def test_each_part_satisfies_its_protocol(parts):
    wanted = {
        "FlavaEmbedder": (
            *(Embedder, ImageFeatures, TextFeatures),
            *(TextStates, ImageStates, PairStates),
        ),
        "PairMatcher": (Matcher,),
        "FlavaScorer": (Scorer,),
    }
    assert set(parts) == set(wanted)
    for name, part in parts.items():
        for protocol in CAPABILITIES:
            assert isinstance(part, protocol) == (protocol in wanted[name])


def test_vectors_are_those_of_single_samples_and_keep_no_graph(module, parts, pixels):
    embedder = parts["FlavaEmbedder"]
    images, texts = embedder.image_features(pixels), embedder.text_features(TEXTS)
    assert not images.requires_grad
    with torch.no_grad():
        for row in range(3):
            [image] = module.model.image_encoder(pixels[row : row + 1])
            torch.testing.assert_close(images[row], image.first()[0])
            torch.testing.assert_close(texts[row], embedder.text_features([TEXTS[row]])[0])
        expected = F.normalize(module.model.text_projection(texts), dim=-1)
    torch.testing.assert_close(embedder.project_texts(texts), expected)
    assert not torch.allclose(embedder.project_images(texts), expected)


def test_log_odds_are_those_of_the_head_less_the_prior(module, parts, pixels):
    rolled = TEXTS[1:] + TEXTS[:1]
    own, other = parts["PairMatcher"].log_odds(pixels, [TEXTS, rolled])
    with torch.no_grad():
        for row in range(3):
            for found, text in ((own, TEXTS[row]), (other, rolled[row])):
                logits = module.objectives["itm"].head(fused(module, pixels[row], text)[:1])[0]
                assert float(found[row]) == pytest.approx(
                    float(logits[1] - logits[0]) - math.log(9), abs=1e-4
                )


def test_masked_places_are_found_in_texts_images_and_pairs(module, parts, pixels):
    scorer = parts["FlavaScorer"]
    assert scorer.predicts == {"text", "image", "text of a pair", "image of a pair"}
    mask = torch.zeros(3, PATCHES, dtype=torch.bool)
    mask[1, 4] = mask[2, 0] = True
    rows, patches = torch.tensor([1, 8]), mask.flatten().nonzero()[:, 0]
    heads = {name: module.objectives[name].head for name in ("mlm", "mim", "mmm_text", "mmm_image")}
    with torch.no_grad():
        alone = scorer.encode_texts(pack(TEXTS, scorer.device)).last_hidden_state()
        torch.testing.assert_close(scorer.read(TEXTS).tokens(rows).logits(), heads["mlm"].logits(alone[rows]))
        [image] = module.model.image_encoder(pixels, mask, clean=False)
        expected = heads["mim"].logits(image.last_hidden_state()[torch.tensor([10 + 1 + 4, 20 + 1 + 0])])
        torch.testing.assert_close(scorer.read(None, pixels, mask).codes(patches).logits(), expected)
        pair = scorer.read(TEXTS, pixels, mask)
        second, third = (fused(module, pixels[row], TEXTS[row], mask[row : row + 1]) for row in (1, 2))
        torch.testing.assert_close(
            pair.codes(patches).logits()[0], heads["mmm_image"].logits(second[2 + 4][None])[0]
        )
        torch.testing.assert_close(
            pair.tokens(rows).logits()[1], heads["mmm_text"].logits(third[11 + 1][None])[0]
        )


def test_a_loss_is_the_cross_entropy_of_the_logits(parts):
    predictions, labels = (
        parts["FlavaScorer"].read(TEXTS).tokens(torch.tensor([1, 2, 8])),
        torch.tensor([5, 7, 150]),
    )
    loss, correct = predictions.loss(labels)
    torch.testing.assert_close(loss, F.cross_entropy(predictions.logits(), labels, reduction="sum"))
    assert int(correct) == int((predictions.logits().argmax(1) == labels).sum())


def test_heads_that_were_not_trained_are_not_offered(module):
    bare = build_task(tiny_config())
    for name in ("itm", "mlm", "mim"):
        del bare.objectives[name]
    found, lacks = offers(bare, tiny_config())
    assert "Matcher" in lacks and "Scorer" not in lacks
    assert not any(isinstance(part, Matcher) for part in found)
    [scorer] = [part for part in found if isinstance(part, Scorer)]
    assert scorer.predicts == {"text of a pair", "image of a pair"}


def test_texts_are_packed_end_to_end():
    packed = pack([np.array([2, 7, 3]), np.array([2, 3])], torch.device("cpu"))
    assert (
        packed.ids.tolist() == [2, 7, 3, 2, 3]
        and packed.cu_seqlens.tolist() == [0, 3, 5]
        and packed.max_seqlen == 3
    )
    assert packed.cu_seqlens.dtype == torch.int32
