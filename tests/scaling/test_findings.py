"""Runs of a table: what is read, intervals, the run that was held out, and advice against its closed form."""

import dataclasses

import numpy as np
import pytest

from flava_ds.scaling import findings, laws

NAMED = {"loss": "loss", "parameters": "n", "samples": "d", "unique": "u", "batch": "b", "flops": "f"}
LAW = {"E": 1.5, "A": 40.0, "alpha": 0.3, "B": 90.0, "beta": 0.25}


def rows(noise=0.0, floor=1.5):
    draw = np.random.default_rng(3)
    return [
        {"run": f"{n:g}-{d:g}", "n": n, "d": d,
         "loss": (floor + 40 * n**-0.3 + 90 * d**-0.25) * np.exp(noise * draw.normal())}
        for n in (1e5, 4e5, 2e6, 9e6)
        for d in (1e4, 6e4, 4e5, 2e6)
    ]  # fmt: skip


def test_the_largest_run_is_held_out_and_predicted():
    runs = findings.runs_of(rows(noise=0.004), "t", NAMED)
    assert [runs.names[row] for row in np.flatnonzero(runs.held_out)] == ["9e+06-2e+06"]
    assert runs.columns["flops"][0] == 6 * 1e5 * 1e4
    fitted = runs.at(~runs.held_out)
    law = findings.law(laws.of_size_and_data(fitted.columns), fitted, 60)
    held_out = runs.at(runs.held_out)
    middle, low, high = law.forecast(held_out.columns)
    assert low < held_out.losses[0] < high
    assert low < middle < high < 1.15 * low
    alpha = law.interval(lambda fit: fit.named()["alpha"])
    assert alpha[0] < 0.3 < alpha[1] and law.has_floor


def test_a_floor_that_is_not_there_is_not_identified():
    runs = findings.runs_of(rows(noise=0.01, floor=0.0), "t", NAMED)
    assert not findings.law(laws.of_size_and_data(runs.columns), runs, 40).has_floor
    assert not findings.law(laws.of_size_and_data(runs.columns, floor=False), runs, 20).has_floor


def test_advice_is_the_closed_form_minimum():
    """C = 6 N D: N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta))."""
    runs = findings.runs_of(rows(), "t", NAMED)
    law = findings.law(laws.of_size_and_data(runs.columns), runs, 20)
    budget, total = 1e16, LAW["alpha"] + LAW["beta"]
    g = (LAW["alpha"] * LAW["A"] / (LAW["beta"] * LAW["B"])) ** (1 / total)
    advice = findings.advise(law, runs, budget)
    assert advice.parameters == pytest.approx(g * (budget / 6) ** (LAW["beta"] / total), rel=0.02)
    assert 6 * advice.parameters * advice.samples == pytest.approx(budget)
    assert advice.beyond == pytest.approx(budget / (6 * 9e6 * 2e6))
    flat = dataclasses.replace(law, fit=dataclasses.replace(law.fit, numbers=np.array([0.3, 0.3, 2, 9, 0])))
    assert findings.advise(flat, runs, budget) is None, "data is worth nothing: no size is large enough"
    small = dataclasses.replace(
        law, fit=dataclasses.replace(law.fit, numbers=np.array([2, 0.3, 2, 3e-8, 90]))
    )
    assert findings.advise(small, runs, budget) is None, "size is worth nothing: a few parameters would do"


def test_scarce_data_asks_for_a_larger_model():
    runs = findings.runs_of(rows(), "t", NAMED)
    form = laws.of_size_and_data(runs.columns, repeated=True, r_star=laws.R_STAR)
    law = findings.law(form, runs, 20)
    plenty = findings.advise(law, runs, 1e16)
    scarce = findings.advise(law, runs, 1e16, unique=plenty.samples / 100)
    assert scarce.parameters > 1.2 * plenty.parameters and scarce.loss[0] > plenty.loss[0]


def test_all_runs_of_most_flops_are_held_out():
    table = rows()
    largest = max(own["n"] * own["d"] for own in table)
    alike = sum(own["n"] * own["d"] == largest for own in table)
    table.append(table[0] | {"n": 2.0, "d": largest / 2 * (1 - 1e-15), "loss": 3.0})
    assert findings.runs_of(table, "t", NAMED).held_out.sum() == alike + 1


def test_groups_of_batches():
    table = [own | {"b": 128} for own in rows()]
    table += [
        table[5] | {"b": batch, "loss": 2 + 0.5 * (1 + batch / 300) ** 0.25} for batch in (64, 256, 512)
    ]
    runs = findings.runs_of(table, "t", NAMED)
    assert findings.of_main_batch(runs).sum() == 16
    batches = findings.batch_runs(runs)
    assert sorted(batches.columns["batch"]) == [64, 128, 256, 512]
    one = batches.at(batches.columns["batch"] != 128)
    better, largest = findings.advise_batch(one, 0.25)
    assert "Bcrit" in better.form.title and largest == 64
    assert findings.batch_runs(findings.runs_of(rows(), "t", NAMED)) is None
