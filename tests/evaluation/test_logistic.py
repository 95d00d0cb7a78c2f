"""The penalty's search tries what it says, and a fit is converged whatever the number of samples."""

import numpy as np
import pytest
import torch

from flava_ds.evaluation.logistic import (
    all_at_once,
    choose_penalty,
    fit_as_clip,
    hold_out,
    one_by_one,
    solver_for,
)


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(0)
    labels = np.arange(240) % 3
    features = draw.normal(size=(240, 12)) + 1.2 * np.eye(3, 12)[labels]
    return features, labels


def test_a_fit_is_at_the_minimum_of_its_objective(samples):
    """The gradient of cross-entropy summed + λ/2 |W|², bias free, vanishes."""
    features, labels = samples
    for penalty in (1e-2, 1.0, 1e3):
        probe = fit_as_clip(features, labels, penalty)
        error = probe.predict_proba(features) - np.eye(3)[labels]
        gradient = error.T @ features + penalty * probe.coef_
        assert np.abs(gradient).max() < 2e-3 and np.abs(error.sum(axis=0)).max() < 2e-3


def test_the_search_halves_around_the_best():
    """Accuracy is a hill over log λ with its top at 10^0.9: the search must end at the nearest eighth of a
    decade."""
    tried = []

    class Scripted:
        def __init__(self, penalty):
            self.right = 1000 - int(100 * abs(np.log10(penalty) - 0.9))

        def predict(self, features):
            return (np.arange(len(features)) < self.right).astype(int)

    def solver(features, labels, penalties):
        tried.extend(penalties)
        return [Scripted(penalty) for penalty in penalties]

    samples = (torch.zeros(1000, 1), np.ones(1000, dtype=int))
    assert np.log10(choose_penalty(solver, samples, samples)) == pytest.approx(0.875)
    assert np.log10(tried[:7]) == pytest.approx([-6, -4, -2, 0, 2, 4, 6])
    assert len(tried) == len(set(tried)) <= 7 + 2 * 4  # none is fitted twice


@pytest.mark.parametrize("solver", [one_by_one, all_at_once])
def test_of_equal_penalties_the_largest_is_taken(solver):
    features, labels = torch.eye(2).repeat_interleave(10, 0), np.repeat([0, 1], 10)
    assert choose_penalty(solver, (features, labels), (features, labels)) >= 1.0


def test_large_sets_are_fitted_for_all_penalties_at_one_time():
    assert solver_for(torch.zeros(20_000, 1)) is one_by_one
    assert solver_for(torch.zeros(20_001, 1)) is all_at_once


def test_a_fifth_of_every_class_is_held_out_the_same_every_time():
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held = hold_out(labels)
    assert [held[labels == label].sum() for label in range(4)] == [10, 2, 1, 0]
    np.testing.assert_array_equal(held, hold_out(labels))
