"""Known embeddings give known recalls in both directions."""

import numpy as np
import pytest
from sample_runs import SEEN, world

from demo.evaluation.known_answers import KnownAnswers
from flava_ds.demo.evaluation.retrieval import Retrieval
from flava_ds.evaluation.nearest import chance_of_recall


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    return Retrieval(world(tmp_path_factory.mktemp("world"))[0])


def test_right_embeddings_are_found_both_ways(retrieval):
    metrics = retrieval.run(KnownAnswers(lambda concept: concept))
    assert {value for name, value in metrics.items() if not name.endswith("/chance")} == {1.0}


def test_confusing_two_concepts_costs_exactly_their_queries(retrieval):
    swapped = {SEEN[0]: SEEN[1], SEEN[1]: SEEN[0]}
    metrics = retrieval.run(KnownAnswers(lambda concept: swapped.get(concept, concept)))
    for direction in ("text_to_image", "image_to_text"):
        assert metrics[f"retrieval/unseen_style/{direction}_recall_at_1"] == pytest.approx(1 - 2 / len(SEEN))


def test_chance_counts_every_picture_of_a_concept_as_right(retrieval):
    metrics = retrieval.run(KnownAnswers(lambda concept: concept))
    assert metrics["retrieval/unseen_style/text_to_image_recall_at_5/chance"] == pytest.approx(
        chance_of_recall(np.full(24, 2), 24, 5)
    )
    assert metrics["retrieval/unseen_concepts/image_to_text_recall_at_1/chance"] == pytest.approx(5 / 20)
