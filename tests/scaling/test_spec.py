"""A sweep as it is written: its runs, their names, and every mistake in one line."""

import datetime
import random

import pytest

from flava_ds.errors import ConfigError
from flava_ds.scaling.spec import Range, Run, option, parse

GRID = {"base": "demo", "grid": {"optimizer.lr": [1e-4, 3e-4], "width": ["64", "own"]},
        "axes": {"width": {"64": {"model.x": 64}, "own": {}}}}  # fmt: skip


def test_a_grid_with_points_that_set_several_fields_and_seeds():
    spec = parse(GRID | {"fixed": {"training.total_steps": 9}, "seeds": [0, 1]}, "s.yaml", "s")
    assert (spec.base, spec.name, len(spec.runs)) == ("demo", "s", 8)
    first, second = spec.runs[:2]
    assert first.overrides == {"training.total_steps": 9, "optimizer.lr": 1e-4, "model.x": 64, "seed": 0}
    assert first.point == {"optimizer.lr": 1e-4, "width": "64", "seed": 0}
    assert second.overrides["seed"] == 1
    assert len({run.name for run in spec.runs}) == 8


def test_names_are_hashes_of_the_overrides_whatever_their_order():
    """printf '{"a": 1, "b": 2.5}' | sha256sum"""
    one, two = Run({"a": 1, "b": 2.5}, {}), Run({"b": 2.5, "a": 1}, {"a": 1})
    assert one.name == two.name == "9a65554d3c"
    assert Run({"a": 1, "b": 2}, {}).name != one.name


def test_values_as_words_of_the_command_line():
    assert option("optimizer.lr", 1e-4) == ["--optimizer.lr", "0.0001"]
    assert option("data.shuffle", False) == ["--data.no-shuffle"]
    assert option("data.num_workers", 2) == ["--data.num-workers", "2"]
    assert option("optimizer.betas", [0.9, 0.98]) == ["--optimizer.betas", "0.9", "0.98"]
    assert option("initial_weights", None) == ["--initial-weights", "None"]


def test_parts_are_united_and_the_held_out_run_is_named():
    parts = {"grid": {"grid": {"a": [1, 2], "b": [1, 2]}}, "again": {"grid": {"a": [2]}, "fixed": {"b": 2}}}
    spec = parse({"base": "demo", "parts": parts, "hold_out": {"a": 2, "b": 2}}, "s", "s")
    assert [run.parts for run in spec.runs] == [("grid",), ("grid",), ("grid",), ("grid", "again")]
    assert [run.held_out for run in spec.runs] == [False, False, False, True]


def test_a_random_search_repeats_and_grows():
    def runs(count):
        ranges = {
            "x": {"from": 1e-4, "to": 1e-1, "log": True},
            "y": [1, 2],
            "z": {"from": 2, "to": 3, "integer": True},
        }
        return parse({"base": "demo", "search": {"runs": count, "fields": ranges}}, "s", "s").runs

    assert runs(4) == runs(9)[:4]
    values = [run.overrides["x"] for run in runs(200)]
    below = sum(value < 10**-2.5 for value in values)
    assert 1e-4 <= min(values) and max(values) <= 1e-1 and 70 < below < 130, "the median of a log range"
    assert {run.overrides["z"] for run in runs(50)} == {2, 3}
    assert isinstance(Range(low=1, high=9, integer=True, log=True).draw(random.Random(0)), int)


def test_optuna_is_asked_later():
    spec = parse({"base": "demo", "search": {"by": "optuna", "runs": 5, "fields": {"x": [1, 2]}}}, "s", "s")
    assert spec.runs == () and spec.asked.runs == 5


def search(**changes):
    return {"base": "demo", "search": {"runs": 2, "fields": {"x": {"from": 0, "to": 1}}} | changes}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "s.yaml is []; give names with values"),
        ({"grid": {"a": [1]}}, "key 'base' is missing"),
        (GRID | {"gird": {}}, "key 'gird' is unknown; did you mean 'grid'?"),
        ({"base": "demo"}, "s.yaml: has no grid, search or seeds"),
        ({"base": "demo", "grid": {"a": []}}, "grid.a is empty"),
        ({"base": "demo", "grid": {"a": 3}}, "grid.a is 3; give a list"),
        ({"base": "demo", "seeds": []}, "grid.seed is empty"),
        ({"base": "demo", "parts": {"p": {"grid": {"a": []}}}}, "parts.p: grid.a is empty"),
        (GRID | {"hold_out": {"wide": 1}}, "hold_out.wide is no axis; did you mean 'width'?"),
        (GRID | {"axes": {"width": {"63": {}}}}, "has '64', which is no label of axes.width; there is 63"),
        (GRID | {"axes": {"width": {"64": 1}}}, "axes.width.64 is 1; give names with values"),
        (GRID | {"hold_out": {"width": "no"}}, "hold_out names no run"),
        (search(fields={"x": {"from": 1, "to": 0}}), "fields.x goes from 1 to 0; give the lower end first"),
        (search(fields={"x": {"from": 0, "to": 1, "log": True}}), "logarithmic from 0; begin above 0"),
        (search(fields={"x": {"from": "a", "to": 1}}), "needs numbers under 'from' and 'to'"),
        (search(fields={}), "search.fields is empty"),
        (search(runs=0), "search.runs is 0"),
        (search(by="grid"), "search.by is 'grid'; use random or optuna"),
        (search(by="optuna") | {"seeds": [1]}, "optuna's search takes no grid and no seeds"),
        ({"base": "demo", "parts": {"p": {"search": search(by="optuna")["search"]}}},
         "cannot be one of several parts"),
        (GRID | {"fixed": [1]}, "s.yaml: fixed is [1]; give names with values"),
        ({"base": "demo", "parts": {"p": {"seeds": [0], "fixed": 2}}}, "parts.p: fixed is 2; give names"),
        (GRID | {"grid": {"width": [[64]]}}, "grid.width has [64], which is no label of axes.width"),
        (GRID | {"grid": {"a": [datetime.date(2020, 1, 1)]}}, "a is datetime.date(2020, 1, 1); give"),
        (GRID | {"fixed": {"model": {"x": 1}}}, "model is {'x': 1}; give a number, a text or a list"),
        (GRID | {"grid": {"name": ["x", "y"]}}, "a sweep gives every run its own name; leave it out"),
        (GRID | {"fixed": {"logging.run-directory": "x"}}, "every run its own logging.run-directory"),
        (GRID | {"metric": ["loss"]}, "metric is ['loss'], which is no text"),
        (GRID | {"name": "../up"}, "name '../up' names no folder"),
        (GRID | {"axes": {"width": {"64": {"optimizer.lr": 1}, "own": {}}}},
         "a later axis sets optimizer.lr to 1, so no run has 0.0001; put the axis optimizer.lr last"),
        (search(fields={"x": {"from": 0.5, "to": 3, "integer": True}}), "whole numbers from 0.5 to 3; give"),
    ],
)  # fmt: skip
def test_slips_are_one_line(spec, message):
    with pytest.raises(ConfigError) as caught:
        parse(spec, "s.yaml", "s")
    assert message in str(caught.value) and "\n" not in str(caught.value)
