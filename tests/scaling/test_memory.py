"""Bytes of a rank against the table of what DeepSpeed allocates, by hand."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from flava_ds.demo.dataset import unpack
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA
from flava_ds.scaling.assumptions import BETTER, MIDDLE, WORSE
from flava_ds.scaling.hardware import GIB, GPUS
from flava_ds.scaling.memory import capacity, gradients, host_states, largest_that_fits, moments, peak, states
from flava_ds.scaling.work import Amount, KindWork, ModelWork, ParameterGroup
from flava_ds.scaling.zero import Zero

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
P = 300_000_000
WORK = KindWork(
    "pair", "pmd", (), {}, Amount(10.0, 2**27), Amount(10.0, 2**28), Amount(8e8, 2**28), Amount(0, 1000)
)
TINY = dataclasses.replace(WORK, kind="text", source="text", peak=Amount(0, 1), saved=Amount(0, 1))
MODEL = ModelWork(
    "r",
    (ParameterGroup(("pair",), 200_000_000, (100_000_000, 99_990_000, 10_000)),
     ParameterGroup(("text",), 100_000_000, (100_000_000,))),
    0, {}, 0, {"pmd": WORK, "text": TINY}, 2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("zero", "weights", "optimizer"),
    [
        (Zero(0, "fp32"), 4 * P, 8 * P),
        (Zero(1, "bf16"), 2 * P, 12 * P / 8),
        (Zero(2, "bf16"), 2 * P, 12 * P / 8),
        (Zero(3, "bf16"), 2 * P / 8 + 2 * 10_000, 12 * P / 8),
        (Zero(2, "bf16", offload=True), 2 * P, 0),
    ],
)
def test_states(zero, weights, optimizer):
    found = states(MODEL, zero, 8)
    assert (found["weights"], found["optimizer"]) == (weights, optimizer)
    assert host_states(MODEL, zero, 8) == (18 * P / 8 if zero.offload else 0)


def test_gradients():
    """Whole tensors that overlap a rank's slice, of every group; two buckets where communication overlaps.

    An eighth of the groups is 25 M and 12.5 M elements, each inside of one tensor of 100 M.
    """
    zero = Zero(1, "bf16", bucket=10**8)
    found = gradients(MODEL, WORK, zero, 8)
    assert found == {"gradients": 2 * 2e8, "gradient buckets": 4e8, "flat copy of gradients": 2e8}
    more = gradients(MODEL, WORK, dataclasses.replace(zero, accumulation=2), 8)
    assert more["accumulated gradients"] == 4e8
    exact = gradients(MODEL, WORK, dataclasses.replace(zero, accumulation=2, fp32_sums=True), 8)
    assert exact == {
        "gradients": 4 * P / 8,
        "accumulated gradients": 8e8,
        "gradient buckets": 8e8,
        "flat copy of gradients": 2e8,
    }
    assert gradients(MODEL, WORK, Zero(2, "bf16", bucket=10**8, fp32_sums=True), 8)["gradient buckets"] == 4e8
    assert gradients(MODEL, TINY, Zero(0, "fp32"), 8)["gradients"] == 4e8


def test_the_peak_is_the_fullest_moment_of_all_kinds():
    zero = Zero(1, "bf16", bucket=10**8)
    found = peak(MODEL, zero, 8, {"pmd": 16, "text": 16}, MIDDLE)
    assert (found.source, found.name) == ("pmd", "backward")
    few = {m.name: m.total for m in moments(MODEL, "text", zero, 8, 1, MIDDLE)}
    assert few["update"] < few["backward"]
    assert peak(MODEL, zero, 8, {"pmd": 16, "text": 16}, WORSE).total > found.total
    assert found.total > peak(MODEL, zero, 8, {"pmd": 16, "text": 16}, BETTER).total


def test_in_zero_0_gradients_come_while_activations_go():
    [backward] = [m for m in moments(MODEL, "pmd", Zero(0, "fp32"), 1, 4, MIDDLE) if m.name == "backward"]
    parts = backward.parts
    assert parts["gradients"] + parts["activations"] == WORK.peak_with_gradients.at(4)
    assert parts["gradients"] == 8e8 and parts["activations"] < WORK.peak.at(4)


def test_forecasts_are_within_a_tenth_of_what_real_steps_held():
    rows = json.loads((RESULTS / "plan_validation.json").read_text(encoding="utf-8"))["memory"]
    settings = {(row["stage"], row["ranks"], row["turns"]) for row in rows}
    assert settings == {
        *itertools.product(range(4), (1, 2), (1,)),
        *itertools.product((1, 2, 3), (1, 2), (2,)),
    }
    assert all(row["forecast"] == pytest.approx(row["measured"], rel=0.1) for row in rows)


def test_a_committed_forecast_is_that_of_the_planner_as_it_is(tmp_path, monkeypatch):
    """Another version of torch may keep a little more or less."""
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    monkeypatch.chdir(tmp_path)
    from plan_memory import RECIPE, forecast_bytes, overrides, write_setting

    unpack(DATA)
    rows = json.loads((RESULTS / "plan_validation.json").read_text(encoding="utf-8"))["memory"]
    (stored,) = (row["forecast"] for row in rows if (row["stage"], row["ranks"], row["turns"]) == (1, 2, 2))
    config = resolve(RECIPE, overrides(1, 2, write_setting(tmp_path, 1)))
    assert forecast_bytes(config, 2)["total"] == pytest.approx(stored, rel=0.02)


def test_the_largest_micro_batch_is_the_last_that_fits():
    zero, gpu = Zero(1, "bf16", bucket=10**8), GPUS["h100"]
    largest = largest_that_fits(MODEL, "pmd", zero, 8, gpu, MIDDLE)

    def needed(samples: int) -> float:
        return max(m.total for m in moments(MODEL, "pmd", zero, 8, samples, MIDDLE))

    assert needed(largest) <= capacity(gpu) < needed(largest + 1)
    small = dataclasses.replace(gpu, memory_gib=2)
    assert largest_that_fits(MODEL, "pmd", zero, 8, small, MIDDLE) == 0 and capacity(small) < 2 * GIB
