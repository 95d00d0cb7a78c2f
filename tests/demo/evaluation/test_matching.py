"""Mismatches are mismatches, the area under the curve is scikit-learn's, and a known head gives known
accuracies.
"""

import math

import numpy as np
import pytest
import torch
from sample_runs import frozen, world

from flava_ds.demo.evaluation.matching import area_under_curve, draw_mismatches, measure
from flava_ds.evaluation.frozen_model import Lacking


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def test_mismatches_have_another_concept_of_the_same_pool():
    concepts = np.array(["a", "a", "b", "c", "d"])
    pools = np.array([0, 0, 0, 1, 2])
    partners = draw_mismatches(concepts, pools)
    assert partners[0] == partners[1] == 2 and partners[2] in (0, 1) and list(partners[3:]) == [-1, -1]
    np.testing.assert_array_equal(partners, draw_mismatches(concepts, pools))


def test_area_under_the_curve_counts_ties_half():
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    positive, negative = draw.integers(0, 6, 40).astype(float), draw.integers(-2, 4, 30).astype(float)
    expected = roc_auc_score(np.r_[np.ones(40), np.zeros(30)], np.r_[positive, negative])
    assert area_under_curve(positive, negative) == pytest.approx(expected)


def test_scores_are_those_of_the_whole_model_less_the_prior(inputs_and_module):
    """Encoding images once and fusing them with other captions equals encoding each pair on its own."""
    from flava_ds.layers.pairs import SequenceLayout

    inputs, module = inputs_and_module
    samples, model = inputs.unseen_style, module.model
    known = frozen(inputs, module)
    ids = known.tokenizer.encode_batch(samples.captions, known.most_tokens["pair"])
    partners = draw_mismatches(samples.column("concept"), np.zeros(len(samples), dtype=int))
    pixels = samples.pixels(inputs.config.model.image.image_size)
    found = known.log_odds(samples, [[ids[partner] for partner in partners]], "a test")[:, 0]
    for row in (0, 5, 23):
        text = torch.from_numpy(ids[partners[row]])
        layout = SequenceLayout(
            model.config.image.num_patches, torch.tensor([0, len(text)], dtype=torch.int32), len(text)
        )
        with torch.no_grad():
            [image] = model.image_encoder(pixels[row : row + 1])
            [encoded] = model.text_encoder([text], layout.text_cu_seqlens, len(text))
            logits = module.objectives["itm"].head(model.fuse(image.packed, encoded.packed, layout).first())
        assert float(found[row]) == pytest.approx(
            float(logits[0, 1] - logits[0, 0]) - math.log(9), rel=1e-4, abs=1e-5
        )


def test_balanced_accuracy_of_a_head_that_always_says_match_is_one_half(inputs_and_module):
    inputs, module = inputs_and_module
    head = module.objectives["itm"].head.classifier
    before = head.bias.detach().clone()
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 100.0]))
    metrics = measure(frozen(inputs, module), inputs)
    with torch.no_grad():
        head.bias.copy_(before)
    assert metrics["matching/random/accuracy"] == 0.5 == metrics["matching/same_subgroup/accuracy"]


def test_a_run_without_the_objective_says_so(inputs_and_module):
    inputs, module = inputs_and_module
    head = module.objectives.pop("itm")
    try:
        with pytest.raises(Lacking, match="needs Matcher .* no objective of type itm"):
            measure(frozen(inputs, module), inputs)
    finally:
        module.objectives["itm"] = head
