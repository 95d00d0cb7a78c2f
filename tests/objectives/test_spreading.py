"""KoLeo and the coding rate by hand."""

import math

import pytest
import torch

from flava_ds.objectives.spreading import coding_rate, koleo


def test_koleo_is_minus_the_log_of_the_nearest_distance():
    features = torch.tensor([[2.0, 0.0], [0.8, 0.6], [0.0, 0.5]], requires_grad=True)
    # Normalised (1, 0), (0.8, 0.6) and (0, 1): the first two are sqrt(0.4) apart, the last two sqrt(0.8).
    expected = -math.log(0.4**0.5) * 2 - math.log(0.8**0.5)
    found = koleo(features)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert (features.grad[0] * torch.tensor([2.0, 0.0])).sum().abs() < 1e-6  # along the sphere only
    assert features.grad[0, 1] > 0  # a descent turns the first away from the second


def test_koleo_of_equal_features_is_finite_and_of_one_is_nothing():
    same = torch.ones(3, 4, requires_grad=True)
    koleo(same).backward()
    assert same.grad.isfinite().all()
    one = torch.ones(1, 4, requires_grad=True)
    found = koleo(one)
    assert float(found) == 0 and found.requires_grad


def test_the_coding_rate_counts_directions():
    # Moments 2 * identity / (2 * 0.5): the determinant of diag(3, 3) is 9.
    assert float(coding_rate(torch.eye(2), 0.5)) == pytest.approx(math.log(3))
    # All in one direction: diag(1 + 2 / 0.5, 1).
    assert float(coding_rate(torch.tensor([[1.0, 0.0]] * 7), 0.5)) == pytest.approx(math.log(5) / 2)
    assert float(coding_rate(torch.zeros(3, 2), 0.5)) == 0
