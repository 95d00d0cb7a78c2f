"""Recalls on pictures of three colours with five captions each: any of the five counts, equal scores favour
nobody.
"""

import pytest
import torch
from evaluation.color_world import KnowsColors, Matches, color_model, write_karpathy

from flava_ds.evaluation.datasets.karpathy import KarpathySplit
from flava_ds.evaluation.retrieval import MatchingRetrieval, Retrieval
from flava_ds.evaluation.runner import find_data

DATA = KarpathySplit("colors", "colors", "none", "here", "dataset_colors.json", ("images",))
TASK = Retrieval("colors", DATA)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return find_data(
        DATA, write_karpathy(tmp_path_factory.mktemp("karpathy"), "dataset_colors.json", "images")
    )


def test_recalls_are_those_of_two_pictures_of_each_colour(data):
    """Six images, two of each colour; a caption fits both of its colour, so R@1 from a caption is one half,
    R@5 is one.
    """
    scores = TASK.run(color_model(), data)
    assert scores["text_to_image_recall_at_1"].value == pytest.approx(0.5)
    assert scores["text_to_image_recall_at_1"].n == 30 and scores["image_to_text_recall_at_1"].n == 6
    assert scores["text_to_image_recall_at_5"].value == 1 == scores["text_to_image_recall_at_10"].value
    # An image finds ten captions of its colour in random order, five of them its own.
    assert scores["image_to_text_recall_at_1"].value == pytest.approx(0.5)
    assert scores["image_to_text_recall_at_5"].value == pytest.approx(1 - 1 / 252)


def test_confusing_colours_costs_their_queries(data):
    scores = TASK.run(color_model(KnowsColors({"green": "red", "red": "green"})), data)
    assert scores["text_to_image_recall_at_1"].value == pytest.approx(0.5 / 3)


def test_a_collapsed_model_scores_chance(data):
    class Collapsed(KnowsColors):
        def project_images(self, features):
            return torch.ones(len(features), 2)

        project_texts = project_images

    scores = TASK.run(color_model(Collapsed()), data)
    assert scores["text_to_image_recall_at_1"].value == pytest.approx(1 / 6)
    assert scores["image_to_text_recall_at_1"].value == pytest.approx(5 / 30)


def test_the_matching_head_reads_every_image_with_one_caption_of_each_and_no_more_than_told(data):
    """Six images with a caption each, two of each colour; of four images, two are of one colour."""
    matches = Matches()
    scores = MatchingRetrieval("colors", DATA).run(color_model(matches), data)
    assert {scores[f"{way}_recall_at_1"].value for way in ("image_to_text", "text_to_image")} == {0.5}
    assert scores["text_to_image_recall_at_1"].n == 6 == matches.asked
    few = MatchingRetrieval("colors", DATA, most=4).run(color_model(Matches()), data)
    colours = [caption[0].split()[0] for caption in data.test().captions[:4]]
    expected = sum(1 / colours.count(colour) for colour in colours) / 4
    assert few["image_to_text_recall_at_1"].value == pytest.approx(expected)
    assert few["text_to_image_recall_at_1"].n == 4
