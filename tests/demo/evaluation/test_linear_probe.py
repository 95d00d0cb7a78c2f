"""The probe reads what is linearly there, and nothing where nothing is."""

import numpy as np
import pytest
import torch
from sample_runs import WORDS, world

from flava_ds.demo.evaluation.linear_probe import INVERSE_PENALTIES, choose_penalty, measure


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))[0]


class Written:
    """Features that hold the group, or noise."""

    def __init__(self, informative: bool):
        self.informative, self.draw = informative, np.random.default_rng(0)

    def image_features(self, samples, asked_by) -> torch.Tensor:
        groups = np.array([WORDS.index(concept) % 3 for concept in samples.column("concept")])
        noise = self.draw.normal(size=(len(groups), 8))
        return torch.from_numpy(noise + (np.eye(3, 8)[groups] * 50 if self.informative else 0))


def test_a_group_that_is_linearly_there_is_read(inputs):
    metrics = measure(Written(informative=True), inputs)
    assert (
        metrics["linear_probe/fluent-emoji-flat/group_accuracy"]
        == 1.0
        == metrics["linear_probe/unseen_concepts/group_accuracy"]
    )


def test_noise_says_nothing_about_concepts_never_seen(inputs):
    metrics = measure(Written(informative=False), inputs)
    assert metrics["linear_probe/unseen_concepts/group_accuracy"] < 0.75


def test_chance_is_the_share_of_the_most_frequent_class(inputs):
    metrics = measure(Written(informative=True), inputs)
    assert metrics["linear_probe/fluent-emoji-flat/group_accuracy/chance"] == pytest.approx(1 / 3)
    # words 12 to 15: groups 0, 1, 2, 0
    assert metrics["linear_probe/unseen_concepts/group_accuracy/chance"] == pytest.approx(1 / 2)


def test_the_penalty_is_chosen_on_a_style_left_out():
    """Features that tell the label through a large direction which does not carry over reward a strong
    penalty less than a weak one fails.
    """
    draw = np.random.default_rng(0)
    labels = np.tile(np.arange(2), 60)
    styles = np.repeat(["a", "b", "c"], 40)
    features = np.stack([labels + draw.normal(size=120) * 0.05, draw.normal(size=120)], axis=1)
    assert choose_penalty(features, labels, styles) in INVERSE_PENALTIES
    assert choose_penalty(features, np.zeros(120), styles) in INVERSE_PENALTIES
