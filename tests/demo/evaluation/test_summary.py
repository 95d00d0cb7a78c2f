"""The gates pass and fail where they should, a number that was not measured fails, and the table shows what
was measured.
"""

import copy
import math

import pytest

from flava_ds.demo.evaluation.summary import CONTRAST, FLAT, MASKED, aims, gates, table


@pytest.fixture
def good():
    metrics = {}
    for style, top1, top5 in ((FLAT, 0.16, 0.36), (CONTRAST, 0.12, 0.25)):
        for k, value, pixels in ((1, top1, 0.11), (5, top5, 0.20)):
            name = f"zero_shot/{style}/top{k}_accuracy"
            metrics |= {name: value, name + "/chance": k / 1500, name + "/pixel_1nn": pixels}
        metrics |= {
            f"linear_probe/{style}/group_accuracy": 0.5,
            f"linear_probe/{style}/group_accuracy/chance": 0.2,
        }
    metrics |= {f"masked/{name}/loss_nats": 4.0 for name in MASKED}
    metrics["matching/random/accuracy"] = 0.7
    return {
        "metrics": metrics,
        "losses": {name: {"first": 6.0, "last": 3.0} for name in MASKED},
        "left_out": {},
    }


LEAST = {f"zero_shot/{FLAT}/top1_accuracy": 0.15, f"zero_shot/{CONTRAST}/top5_accuracy": 0.2}


def failed(evaluation, thresholds=LEAST):
    return [name for name, _, _, passed in gates(evaluation, thresholds) if not passed]


def test_a_good_run_passes_all_gates_and_meets_the_aims(good):
    assert failed(good) == [] == failed(good, {})
    assert len(gates(good, LEAST)) == len(gates(good, {})) + 2
    assert all(passed for *_, passed in aims(good)) and len(aims(good)) == 4


@pytest.mark.parametrize(
    ("metric", "value", "count"),
    [
        (f"zero_shot/{FLAT}/top1_accuracy", 0.149, 1),
        (f"zero_shot/{FLAT}/top1_accuracy", 0.15, 0),
        (f"zero_shot/{CONTRAST}/top5_accuracy", 0.19, 1),
        (f"linear_probe/{FLAT}/group_accuracy", 0.2, 1),
        ("masked/mim/loss_nats", 5.01, 1),
        ("masked/mim/loss_nats", 4.99, 0),
        ("matching/random/accuracy", 0.549, 1),
    ],
)
def test_each_gate_fails_on_its_own(good, metric, value, count):
    good["metrics"][metric] = value
    assert len(failed(good)) == count


@pytest.mark.parametrize("missing", ["metrics", "losses"])
def test_what_was_not_measured_fails(good, missing):
    empty = copy.deepcopy(good) | {missing: {}}
    unmeasured = [gate for gate in gates(empty, LEAST) if math.isnan(gate[1]) or math.isnan(gate[2])]
    assert unmeasured and not any(passed for *_, passed in unmeasured)


def test_aims_are_not_gates(good):
    good["metrics"][f"zero_shot/{CONTRAST}/top1_accuracy/pixel_1nn"] = 0.9
    assert failed(good) == [] and sum(not passed for *_, passed in aims(good)) == 1


def test_the_table_lines_up_and_names_what_was_left_out(good):
    good["left_out"] = {"matching": "the time limit was reached"}
    lines = table(good).splitlines()
    assert "16.0 %" in lines[1] and "11.0 %" in lines[1] and "0.07 %" in lines[1]
    assert lines[-1] == "left out: matching (the time limit was reached)"
    assert len({len(line) for line in lines[:-1]}) == 1
