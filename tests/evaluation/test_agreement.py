"""Each number against a case by hand and against scikit-learn or scipy."""

import numpy as np
import pytest

from flava_ds.evaluation import agreement

PREDICTED, LABELS = np.array([1, 1, 0, 1, 0]), np.array([1, 0, 0, 1, 1])


def test_by_hand():
    """Two true and one false positive, one false and one true negative."""
    assert agreement.f1(PREDICTED, LABELS) == pytest.approx(2 * 2 / (3 + 3))
    assert agreement.accuracy_and_f1(PREDICTED, LABELS) == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert agreement.matthews(PREDICTED, LABELS) == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    assert agreement.pearson(np.array([1.0, 2, 3]), np.array([2.0, 4, 9])) == pytest.approx(7 / np.sqrt(52))
    ties = np.array([1.0, 1, 3]), np.array([5.0, 6, 7])  # ranks 1.5 1.5 3 and 1 2 3
    assert agreement.spearman(*ties) == pytest.approx(1.5 / np.sqrt(1.5 * 2))


def test_as_others_compute_them():
    scipy_stats, metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    predicted = np.where(draw.random(300) < 0.7, labels, draw.integers(0, 2, 300))
    assert agreement.f1(predicted, labels) == pytest.approx(metrics.f1_score(labels, predicted))
    assert agreement.matthews(predicted, labels) == pytest.approx(
        metrics.matthews_corrcoef(labels, predicted)
    )
    x = draw.normal(size=300).round(1)
    y = (x + draw.normal(size=300)).round(1)
    assert agreement.pearson(x, y) == pytest.approx(scipy_stats.pearsonr(x, y)[0])
    assert agreement.spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y)[0])
    assert agreement.pearson_and_spearman(x, y) == pytest.approx(
        (scipy_stats.pearsonr(x, y)[0] + scipy_stats.spearmanr(x, y)[0]) / 2
    )


def test_a_side_that_says_one_thing_only_agrees_with_nothing():
    constant = np.full(5, 0.1)
    assert agreement.pearson(constant, LABELS) == 0 == agreement.spearman(constant, LABELS)
    assert agreement.matthews(np.zeros(5), LABELS) == 0
    assert agreement.f1(np.zeros(3), np.zeros(3)) == 0
    # Every resample gives the same, which says nothing of another test set.
    found = agreement.scored(agreement.matthews, np.zeros(5), LABELS)
    assert (found.value, found.standard_error, found.interval) == (0, None, None)


def test_the_error_is_that_of_the_mean_where_the_number_is_one():
    draw = np.random.default_rng(1)
    hits = (draw.random(400) < 0.8).astype(int)
    found = agreement.scored(lambda p, y: float(np.mean(p == y)), hits, np.ones(400, dtype=int))
    assert found.n == 400 and found.standard_error == pytest.approx(np.sqrt(0.8 * 0.2 / 400), rel=0.15)
    low, high = found.interval
    assert low < 0.8 < high and (high - low) / found.standard_error == pytest.approx(3.92, rel=0.1)
    again = agreement.scored(lambda p, y: float(np.mean(p == y)), hits, np.ones(400, dtype=int))
    assert again == found
