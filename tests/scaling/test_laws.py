"""Laws: published parameters are found again, and every form against numbers computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from flava_ds.errors import DataError
from flava_ds.scaling import laws

EPOCH = {"alpha": 0.3478, "beta": 0.3658, "E": 1.8172, "A": 482.01, "B": 2085.43}
"""Besiroglu et al. (2024), table 1: the refit of Chinchilla's points. benchmarks/laws_chinchilla.py fits the
points themselves."""


def table(sizes=9, lengths=8, **columns):
    n, d = np.meshgrid(np.geomspace(5e7, 1.6e10, sizes), np.geomspace(1e9, 5e11, lengths))
    return {"parameters": n.ravel(), "samples": d.ravel(), "unique": d.ravel(), **columns}


def losses_of(columns, data=None):
    d = columns["samples"] if data is None else data
    return (
        EPOCH["E"] + EPOCH["A"] * columns["parameters"] ** -EPOCH["alpha"] + EPOCH["B"] * d ** -EPOCH["beta"]
    )


def test_the_committed_fit_of_the_points_is_the_published_one():
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "laws_chinchilla.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["objective"] <= found["their_objective"]
    assert found["numbers"]["alpha"] == pytest.approx(0.348, abs=2e-3)
    assert found["numbers"]["beta"] == pytest.approx(0.366, abs=2e-3)


def test_published_parameters_come_back_in_spite_of_outliers():
    columns = table()
    losses = losses_of(columns)
    losses[[3, 17, 40]] *= [1.3, 0.9, 1.2]  # least squares would follow them
    found = laws.fit(laws.of_size_and_data(columns), columns, losses).named()
    assert found == pytest.approx(EPOCH, rel=0.015)
    for name in ("alpha", "beta", "E"):
        assert found[name] == pytest.approx(EPOCH[name], abs=0.001)


def test_the_objective_is_hubers_sum_at_its_minimum():
    columns = table(5, 4)
    losses = losses_of(columns) * np.exp(np.random.default_rng(0).normal(0, 0.003, 20))
    form = laws.of_size_and_data(columns)
    found = laws.fit(form, columns, losses)
    errors = np.abs(np.log(losses / found.predict(columns)))
    terms = [error**2 / 2 if error < 1e-3 else 1e-3 * (error - 5e-4) for error in errors]
    assert found.objective == pytest.approx(sum(terms))
    assert errors.max() > 1e-3 > errors.min()

    def objective(numbers):
        return laws._objective(form, columns, losses, np.abs(numbers))

    other = minimize(objective, found.numbers * 1.02, method="Nelder-Mead", options={"maxfev": 4000})
    assert found.objective <= other.fun * 1.001


def test_without_a_floor_the_loss_goes_to_zero():
    columns = table(5, 4)
    form = laws.of_size_and_data(columns, floor=False)
    losses = 50 * columns["parameters"] ** -0.2 + 80 * columns["samples"] ** -0.25
    found = laws.fit(form, columns, losses).named()
    assert found == pytest.approx({"alpha": 0.2, "beta": 0.25, "A": 50, "B": 80}, rel=1e-3)
    assert laws.fit(laws.of_size_and_data(columns), columns, losses).named()["E"] < 0.02 * losses.min()


def test_repeated_data_is_worth_less():
    """PMD is seen 17.6 times: R = 16.6, D' = U (1 + 15.39 (1 - exp(-16.6 / 15.39))) = 11.16 U."""
    found = laws.effective_samples(np.array([17.6, 1.0, 0.5, 1e6]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert found == pytest.approx([11.156, 1.0, 0.5, 1 + laws.R_STAR], rel=1e-4)


def test_the_worth_of_repetition_is_found():
    columns = table(4, 6)
    columns["unique"] = columns["samples"] / np.resize([1.0, 4.0, 30.0], 24)
    losses = losses_of(columns, laws.effective_samples(columns["samples"], columns["unique"], 8.0))
    form = laws.of_size_and_data(columns, repeated=True)
    found = laws.fit(form, columns, losses)
    assert np.exp(found.named()["ln R*"]) == pytest.approx(8.0, rel=0.01)
    plain = laws.fit(laws.of_size_and_data(columns), columns, losses)
    fixed = laws.fit(laws.of_size_and_data(columns, repeated=True, r_star=8.0), columns, losses)
    assert plain.objective > 20 * fixed.objective


def test_batches_by_both_forms():
    batches = {"batch": np.array([64.0, 128, 256, 512, 1024])}
    more_negatives = 2.0 + 30 * batches["batch"] ** -0.7
    found = laws.fit(laws.of_batch(batches, "negatives"), batches, more_negatives).named()
    assert found == pytest.approx({"gamma": 0.7, "E": 2.0, "K": 30.0}, rel=1e-3)
    wasteful = 2.0 + 0.5 * (1 + batches["batch"] / 200) ** 0.3
    found = laws.fit(laws.of_batch(batches, "critical"), batches, wasteful).named()
    assert np.exp(found.pop("ln Bcrit")) == pytest.approx(200, rel=0.02)
    assert found == pytest.approx({"E": 2.0, "J": 0.5}, rel=0.02)


def test_an_error_saturates_at_both_ends():
    columns = {"flops": np.geomspace(1e15, 1e21, 14)}
    errors = 0.1 + 1e5 * (columns["flops"] + 1e17) ** -0.3
    found = laws.fit(laws.of_error(columns), columns, errors)
    assert found.predict(columns) == pytest.approx(errors, rel=1e-3)
    assert found.named()["d"] == pytest.approx(0.1, rel=0.05)


def test_the_frontier_is_what_nothing_cheaper_beats():
    flops, values = np.array([4.0, 1.0, 2.0, 3.0, 2.0]), np.array([0.5, 0.9, 0.95, 0.6, 0.7])
    assert laws.frontier(flops, values).tolist() == [1, 4, 3, 0]


@pytest.mark.parametrize(
    ("losses", "message"),
    [([1.0, 2.0], "5 numbers to fit, but there are 2 runs"), ([1.0, -1, 1, 1, 1, 1], "not a number above 0")],
)
def test_what_cannot_be_fitted_says_why(losses, message):
    columns = table(len(losses), 1)
    with pytest.raises(DataError, match=message):
        laws.fit(laws.of_size_and_data(columns), columns, np.array(losses))
