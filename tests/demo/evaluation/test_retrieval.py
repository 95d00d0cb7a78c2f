"""Known embeddings give known recalls in both directions."""

import numpy as np
import pytest
import torch
from sample_runs import SEEN, world

from demo.evaluation.known_answers import KnownAnswers
from flava_ds.demo.evaluation.retrieval import measure, recalls
from flava_ds.evaluation.nearest import chance_of_recall


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))[0]


def test_right_embeddings_are_found_both_ways(inputs):
    metrics = measure(KnownAnswers(lambda concept: concept), inputs)
    assert {value for name, value in metrics.items() if not name.endswith("/chance")} == {1.0}


def test_confusing_two_concepts_costs_exactly_their_queries(inputs):
    swapped = {SEEN[0]: SEEN[1], SEEN[1]: SEEN[0]}
    metrics = measure(KnownAnswers(lambda concept: swapped.get(concept, concept)), inputs)
    for direction in ("text_to_image", "image_to_text"):
        assert metrics[f"retrieval/unseen_style/{direction}_recall_at_1"] == pytest.approx(1 - 2 / len(SEEN))


def test_chance_counts_every_picture_of_a_concept_as_right(inputs):
    metrics = measure(KnownAnswers(lambda concept: concept), inputs)
    assert metrics["retrieval/unseen_style/text_to_image_recall_at_5/chance"] == pytest.approx(
        chance_of_recall(np.full(24, 2), 24, 5)
    )
    assert metrics["retrieval/unseen_concepts/image_to_text_recall_at_1/chance"] == pytest.approx(5 / 20)


def test_recall_counts_concepts_among_the_first():
    keys = torch.eye(8)
    concepts = np.array(list("aabcdefg"))
    queries = keys[[1, 0, 2, 3, 4, 7, 6, 5]]  # the two of `a` find each other's, `e` and `g` are swapped
    found = recalls("x@", queries, keys, concepts)
    assert found["x@1"] == 6 / 8 and found["x@1/chance"] == pytest.approx((2 * 2 / 8 + 6 / 8) / 8)
    assert found["x@5"] >= found["x@1"] and set(found) == {"x@1", "x@5", "x@1/chance", "x@5/chance"}
