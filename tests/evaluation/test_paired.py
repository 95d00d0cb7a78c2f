"""Paired differences against closed forms, and Holm's correction by hand."""

import itertools

import numpy as np
import pytest

from flava_ds.evaluation.paired import Measured, bootstrap, holm, verdict


def measured(sums, counts, clusters="concepts"):
    """Builds a number from lists."""
    return Measured(clusters, np.array(sums, dtype=float), np.array(counts))


def test_the_difference_is_paired_and_weighs_items_not_clusters():
    higher, lower = measured([[2, 1], [1, 1]], [2, 1]), measured([[1, 0], [1, 0]], [2, 1])
    difference = higher.minus(lower)
    assert difference.values().tolist() == [2 / 3, 1 / 3]
    assert bootstrap([(100.0, difference)]).value == pytest.approx(50.0)
    with pytest.raises(AssertionError):
        higher.minus(measured([[1, 0], [1, 0]], [2, 1], clusters="words"))


def test_spread_of_seeds_alone_is_that_of_their_mean():
    seeds = np.array([[1.0], [2.0], [6.0]]) * np.ones((3, 50))
    estimate = bootstrap([(1.0, Measured("concepts", seeds, np.ones(50, int)))])
    values = np.array([1.0, 2.0, 6.0])
    assert estimate.value == 3.0
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(3), rel=0.03)


def test_spread_of_items_alone_is_that_of_their_mean():
    items = np.random.default_rng(0).normal(size=400)
    estimate = bootstrap([(1.0, Measured("concepts", np.stack([items, items]), np.ones(400, int)))])
    assert estimate.standard_error == pytest.approx(items.std(ddof=1) / 20, rel=0.03)
    assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_a_resample_takes_all_items_of_a_cluster_and_numbers_of_one_kind_together():
    items = np.random.default_rng(1).normal(size=200)
    one = Measured("concepts", np.stack([items, items]), np.ones(200, int))
    against = Measured("concepts", -one.sums, one.counts)
    # The same concepts are drawn for both, so their sum does not vary at all.
    assert bootstrap([(1.0, one), (1.0, against)]).standard_error == pytest.approx(0.0, abs=1e-12)
    apart = Measured("words", -one.sums, one.counts)
    assert bootstrap([(1.0, one), (1.0, apart)]).standard_error == pytest.approx(
        np.sqrt(2) * items.std(ddof=1) / np.sqrt(200), rel=0.05
    )


def test_two_seeds_of_opposite_signs_resolve_nothing_and_one_is_refused():
    sums = np.array([[1.0], [-0.5]]) * np.ones((2, 30))
    # By hand: a quarter of the draws are twice the lower seed.
    estimate = bootstrap([(1.0, Measured("concepts", sums, np.ones(30, int)))])
    assert estimate.p == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="1 seed: at least two"):
        bootstrap([(1.0, Measured("concepts", sums[:1], np.ones(30, int)))])


def how_often_called(seeds, spread):
    """Returns how often p is under 0.05 where nothing differs; `spread`, of seeds, is in errors of items."""
    draw, calls, trials = np.random.default_rng(2), 0, 1000
    for _ in range(trials):
        sums = draw.normal(scale=0.1 * spread, size=(seeds, 1)) + draw.normal(size=(1, 100))
        estimate = bootstrap([(1.0, Measured("concepts", sums, np.ones(100, int)))], resamples=500)
        calls += estimate.p < 0.05
    return calls / trials


def test_how_often_no_difference_is_called_one():
    """docs/ablation.md gives these rates: few seeds call more differences than the promised 5 %."""
    three, five = ([how_often_called(seeds, spread) for spread in (1, 3)] for seeds in (3, 5))
    assert three == pytest.approx([0.06, 0.12], abs=0.015)
    assert five == pytest.approx([0.04, 0.08], abs=0.015)


def test_holm_by_hand():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, each at least the one before.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []
    for order in itertools.permutations([0.001, 0.2, 0.04]):
        assert dict(zip(order, holm(order), strict=True)) == pytest.approx(
            {0.001: 0.003, 0.04: 0.08, 0.2: 0.2}
        )


def test_verdicts():
    assert [verdict(*given) for given in ((1, 0.04), (-1, 0.04), (1, 0.05), (-1, 0.9))] == [
        "holds",
        "reversed",
        "unresolved",
        "unresolved",
    ]
