"""Scores with their errors, against simulation, scikit-learn and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch

from flava_ds.evaluation import statistics
from flava_ds.evaluation.statistics import hits_at, mean_per_class, roc_area, share


def test_a_share_has_the_binomial_standard_error():
    score = share(np.r_[np.ones(30), np.zeros(70)])
    assert score.value == 0.3 and score.n == 100
    assert score.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert share(np.ones(1)).standard_error is None and str(share(np.ones(1))) == "100.00 %"
    assert mean_per_class(np.ones(3), np.array([0, 0, 1])).standard_error is None


def test_classes_count_alike_whatever_their_size():
    hits, labels = np.r_[np.ones(90), np.zeros(5), np.ones(5)], np.r_[np.zeros(90), np.ones(10)].astype(int)
    score = mean_per_class(hits, labels)
    assert score.value == pytest.approx((1 + 0.5) / 2) and score.n == 100
    assert score.standard_error == pytest.approx(math.sqrt(hits[90:].var(ddof=1) / 10) / 2)


def test_the_area_and_its_error_are_those_of_drawing_anew():
    draw = np.random.default_rng(0)

    def sample():
        labels = np.r_[np.ones(60), np.zeros(80)].astype(int)
        return roc_area(np.r_[draw.normal(1, 1, 60), draw.normal(0, 1, 80)], labels)

    scores = [sample() for _ in range(300)]
    values = np.array([score.value for score in scores])
    assert values.mean() == pytest.approx(0.76, abs=0.01)  # of two normals one deviation apart
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(values.std(), rel=0.15)
    assert roc_area(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0, 1, 0, 1])).value == 0.5


def test_hits_are_those_of_every_order_of_equal_scores(monkeypatch):
    """Scores of a few values, so that many are equal; expected by trying all orders."""
    monkeypatch.setattr(statistics, "CHUNK_ROWS", 3)
    draw = np.random.default_rng(1)
    queries = torch.from_numpy(draw.integers(-1, 2, (8, 2))).float()
    keys = torch.from_numpy(draw.integers(-1, 2, (5, 2))).float()
    right = [draw.choice(5, draw.integers(1, 3), replace=False) for _ in range(8)]
    found = hits_at(queries, keys, right, (1, 2, 5))
    for query in range(8):
        scores = (queries[query] @ keys.T).numpy()
        orders = [
            order for order in itertools.permutations(range(5)) if all(np.diff(scores[list(order)]) <= 0)
        ]
        for column, k in enumerate((1, 2, 5)):
            expected = np.mean([bool(set(order[:k]) & set(right[query].tolist())) for order in orders])
            assert found[query, column] == pytest.approx(expected)
    assert (found[:, 2] == 1).all()


def test_a_collapsed_model_scores_chance_in_whatever_order_the_keys_are():
    same = torch.ones(40, 4)
    hits = hits_at(same, same, [np.array([row]) for row in range(40)], (1, 5))
    assert share(hits[:, 0]).value == pytest.approx(1 / 40) and share(hits[:, 1]).value == pytest.approx(
        5 / 40
    )
