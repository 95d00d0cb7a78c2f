"""Several problems are minimised at one time as if each were alone, and each ends by itself."""

import pytest
import torch
from scipy.optimize import minimize

from flava_ds.evaluation.lbfgs import minimise


def rosenbrock(points):
    return (100 * (points[:, 1:] - points[:, :-1] ** 2) ** 2 + (1 - points[:, :-1]) ** 2).sum(1)


def with_gradient(function):
    asked = []

    def objective(points, which):
        asked.append(which.tolist())
        points = points.detach().requires_grad_()
        values = function(points)
        [gradient] = torch.autograd.grad(values.sum(), points)
        return values.detach(), gradient

    return objective, asked


def test_a_curved_valley_is_followed_to_its_end():
    start = torch.tensor(
        [[-1.2, 1.0, -1.2, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, -2.0, 1.0, 4.0]], dtype=torch.float64
    )
    objective, _ = with_gradient(rosenbrock)
    found, taken = minimise(objective, start, iterations=500, tolerance=1e-8)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-7, rtol=0)
    theirs = [
        minimize(lambda x: float(rosenbrock(torch.from_numpy(x)[None])), row.numpy(), method="L-BFGS-B").nit
        for row in start
    ]
    assert all(ours < 3 * scipy for ours, scipy in zip(taken.tolist(), theirs, strict=True))


def test_a_problem_that_has_ended_is_asked_no_more():
    scale = torch.tensor([1.0, 1.0, 1e4], dtype=torch.float64)
    stretch = torch.tensor([[1.0, 1.0, 1.0], [1.0, 10.0, 100.0], [1.0, 7.0, 1e3]], dtype=torch.float64)

    def quadratic(points, which):
        s = stretch[which] * scale[which, None]
        return (s * (points - 3) ** 2).sum(1), 2 * s * (points - 3)

    asked = []

    def noted(points, which):
        asked.append(which.tolist())
        return quadratic(points, which)

    found, taken = minimise(noted, torch.zeros(3, 3, dtype=torch.float64), iterations=200, tolerance=1e-9)
    torch.testing.assert_close(found, torch.full_like(found, 3.0), atol=1e-8, rtol=0)
    assert taken[0] < taken[1] and asked[0] == [0, 1, 2]
    assert max(place for place, which in enumerate(asked) if 0 in which) < len(asked) - 3


def test_the_limit_of_iterations_holds():
    objective, asked = with_gradient(rosenbrock)
    _, taken = minimise(objective, torch.zeros(2, 6, dtype=torch.float64), iterations=3, tolerance=0.0)
    assert taken.tolist() == [3, 3]


def test_a_start_at_the_minimum_is_the_answer():
    objective, asked = with_gradient(rosenbrock)
    found, taken = minimise(objective, torch.ones(1, 4, dtype=torch.float64), iterations=9, tolerance=1e-9)
    assert taken.tolist() == [0] and len(asked) == 1 and torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_where_no_step_is_better_the_search_ends(level):
    """A gradient that points the wrong way, as rounding makes it at the end."""
    calls = []

    def objective(points, which):
        calls.append(1)
        return points.abs().sum(1) + level, -torch.ones_like(points)

    found, taken = minimise(objective, torch.zeros(1, 2, dtype=torch.float64), iterations=50, tolerance=1e-9)
    assert torch.equal(found, torch.zeros_like(found)) and taken.item() == 1 and sum(calls) < 50
