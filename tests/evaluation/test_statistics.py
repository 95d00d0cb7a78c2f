"""Scores with their errors, against simulation, scikit-learn and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flava_ds.errors import DataError
from flava_ds.evaluation import statistics
from flava_ds.evaluation.statistics import hits_at, mean_per_class, roc_area, share, share_over_folds


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

    scores = [sample() for _ in range(120)]
    values = np.array([score.value for score in scores])
    assert values.mean() == pytest.approx(0.76, abs=0.01)  # of two normals one deviation apart
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(values.std(), rel=0.15)
    covered = [score.interval[0] < 0.7602 < score.interval[1] for score in scores]
    assert np.mean(covered) > 0.88  # 95 % and the error of 120 draws
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
    # Equal vectors whose products differ in the last bits, as kernels sum in other orders.
    draw = torch.Generator().manual_seed(0)
    rounded = F.normalize(torch.ones(1, 64) + 0.1, dim=1).expand(40, 64) * (
        1 + 1e-7 * torch.randint(-1, 2, (40, 1), generator=draw)
    )
    hits = hits_at(same[:, :1].expand(40, 64) / 8, rounded, [np.array([row]) for row in range(40)], (1,))
    assert share(hits[:, 0]).value == pytest.approx(1 / 40)


def test_scores_that_are_no_numbers_and_areas_of_one_class_are_refused():
    scores = torch.tensor([[0.0, float("nan")], [1.0, 0.0]])
    with pytest.raises(DataError, match="scores of the model are not finite"):
        hits_at(scores, torch.eye(2), [np.array([0]), np.array([1])], (1,))
    with pytest.raises(DataError, match="the 3 samples reported on are all of one class"):
        roc_area(np.arange(3.0), np.ones(3, dtype=int))


def test_an_interval_is_that_of_drawing_the_samples_again():
    draw = np.random.default_rng(3)
    hits = np.r_[np.ones(30), np.zeros(60), np.full(10, 0.5)]
    drawn = hits[draw.integers(0, 100, (20_000, 100))].mean(1)
    assert share(hits).interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.011)
    covered = [
        share(sample).interval[0] <= 0.3 <= share(sample).interval[1]
        for sample in (draw.random((200, 80)) < 0.3)
    ]
    assert 0.88 < np.mean(covered) < 0.99


def test_captions_of_one_image_are_drawn_together():
    """Five captions that always agree say as much as one."""
    images = (np.random.default_rng(0).random(100) < 0.4).astype(float)
    alone, five = share(images), share(np.repeat(images, 5), np.repeat(np.arange(100), 5))
    assert five.interval == pytest.approx(alone.interval) and five.n == 500
    low, high = share(np.repeat(images, 5)).interval
    assert high - low < 0.6 * (alone.interval[1] - alone.interval[0])


def test_the_mean_over_folds_weighs_folds_alike():
    """Folds of 2 and 4 samples: (1/2 + 3/4) / 2; sample 3 is in both."""
    hits = [np.array([True, False]), np.array([True, True, True, False])]
    found = share_over_folds(hits, [np.array([0, 3]), np.array([3, 5, 7, 9])])
    assert found.value == pytest.approx(0.625) and found.n == 5
    assert found.interval[0] < 0.625 < found.interval[1]
    # How often a sample is tested is no chance: folds that are all right have no spread.
    right = share_over_folds([np.ones(2), np.ones(4)], [np.array([0, 3]), np.array([3, 5, 7, 9])])
    assert (
        right.value == 1
        and right.standard_error is None
        and right.interval == pytest.approx((5 / (5 + 3.8415), 1), abs=1e-4)
    )
    draw, found = np.random.default_rng(0), []
    rows = [draw.choice(120, 50, replace=False) for _ in range(6)]
    for _ in range(300):
        hits = draw.random(120) < 0.8
        found.append(share_over_folds([hits[own] for own in rows], rows))
    spread = np.std([score.value for score in found])
    assert spread == pytest.approx(np.mean([score.standard_error for score in found]), rel=0.1)


def test_an_interval_has_a_width_where_all_are_right_or_all_wrong():
    """By hand: z^2 = 3.8415, so Wilson gives n of n right n / (n + 3.8415) to 1."""
    labels = np.array([0, 0, 1, 1, 1, 1])
    right, wrong = mean_per_class(np.ones(6), labels), mean_per_class(np.zeros(6), labels)
    below = math.hypot(1 - 2 / 5.8415, 1 - 4 / 7.8415) / 2  # of classes of 2 and 4
    assert right.interval == pytest.approx((1 - below, 1), abs=1e-4) and below == pytest.approx(
        0.41, abs=1e-3
    )
    assert wrong.interval == pytest.approx((0, below), abs=1e-4)
    assert right.standard_error is None and str(wrong) == "0.00 %"
    assert share(np.ones(6)).interval == pytest.approx((6 / 9.8415, 1), abs=1e-4)
    assert share(np.ones(6), np.array([0, 0, 0, 1, 1, 1])).interval == pytest.approx(
        (2 / 5.8415, 1), abs=1e-4
    )
    assert share(np.ones(6)).standard_error is None and share(np.r_[np.ones(5), 0]).standard_error > 0
    apart = roc_area(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1]))
    assert (apart.value, apart.standard_error, apart.interval) == (1.0, None, None)


def test_the_interval_of_a_mean_over_classes_holds_the_truth():
    draw, covered = np.random.default_rng(4), []
    labels, chances = np.repeat([0, 1, 2], [40, 8, 4]), np.array([0.9, 0.6, 0.95])
    for _ in range(200):
        low, high = mean_per_class(draw.random(52) < chances[labels], labels).interval
        covered.append(low <= chances.mean() <= high)
    assert 0.9 < np.mean(covered) < 1
