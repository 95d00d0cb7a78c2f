"""Right answers give 1, always the same answer gives chance, and the candidates are the concepts that the set
contains."""

import pytest
import torch
from sample_runs import SEEN, WORDS, frozen, world

from demo.evaluation.known_answers import KnownAnswers
from flava_ds.demo.evaluation.zero_shot import TEMPLATES, measure
from flava_ds.evaluation.zero_shot import classifier


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def test_a_model_that_knows_is_always_right(inputs_and_module):
    metrics = measure(KnownAnswers(lambda concept: concept), inputs_and_module[0])
    accuracies = {name: value for name, value in metrics.items() if not name.endswith("/chance")}
    assert set(accuracies.values()) == {1.0} and len(accuracies) == 3 * 2 * 2


def test_one_answer_for_all_is_right_as_often_as_that_concept_occurs(inputs_and_module):
    metrics = measure(KnownAnswers(lambda concept: WORDS[0]), inputs_and_module[0])
    assert metrics["zero_shot/fluent-emoji-flat/top1_accuracy"] == pytest.approx(1 / len(SEEN))
    assert metrics["zero_shot/unseen_concepts/all_concepts_top1_accuracy"] == 0.0


def test_chance_follows_the_number_of_candidates(inputs_and_module):
    metrics = measure(KnownAnswers(lambda concept: concept), inputs_and_module[0])
    assert metrics["zero_shot/fluent-emoji-high-contrast/top5_accuracy/chance"] == pytest.approx(
        5 / len(SEEN)
    )
    assert metrics["zero_shot/unseen_concepts/top5_accuracy/chance"] == 1.0  # four candidates
    assert metrics["zero_shot/unseen_concepts/all_concepts_top1_accuracy/chance"] == pytest.approx(
        1 / len(WORDS)
    )


def test_the_classifier_is_the_renormalised_mean_of_the_prompts(inputs_and_module):
    inputs, module = inputs_and_module
    model = frozen(inputs, module)
    weights = classifier(model, ["apple", "kite"], TEMPLATES, "a test")
    mean = model.text_embeddings([template.format("kite") for template in TEMPLATES], "a test").mean(dim=0)
    torch.testing.assert_close(weights[1], mean / mean.norm())
