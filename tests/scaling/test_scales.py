"""Simulated runs on several numbers of GPUs: what checkpoints cost, by hand, and ranges around the middle."""

import pytest

from flava_ds.scaling.assumptions import BETTER, WORSE
from flava_ds.scaling.failures import RATES
from flava_ds.scaling.hardware import cluster
from flava_ds.scaling.plan import Setting, forecast
from flava_ds.scaling.scales import as_json, scale_rows, simulate
from flava_ds.scaling.simulator import Simulator, recovery_of, run_of
from flava_ds.scaling.work import Amount, KindWork, ModelWork, Operator, ParameterGroup
from flava_ds.scaling.zero import Zero

PRODUCT = Operator(
    "mm", "forward", False, 24, Amount(2e9), Amount(1e7), Amount(512), Amount(1024), Amount(1024)
)
WORK = KindWork(
    "pair", "pmd", (PRODUCT,), {}, Amount(5e10), Amount(1e7), Amount(1e7), Amount(0, 1000),
    length_deviation=0.2, token_share=0.5,
)  # fmt: skip
MODEL = ModelWork("r", (ParameterGroup(("pair",), 10**9, (10**9,)),), 0, {}, 0, {"pmd": WORK}, 2)
SETTING = Setting(
    MODEL, cluster("h100", 64, None, None), Zero(1, "bf16"), {"pmd": 4096}, {"pmd": 1.0}, 200_000, 4, 1, False
)


def test_what_a_checkpoint_of_a_milliard_parameters_costs():
    """12 bytes of each over 64 GPUs are 0.1875 GB, copied at 25 GB/s; eight of a machine are written at 1."""
    found = recovery_of(SETTING)
    assert (found.stands, found.writes) == pytest.approx((0.05 + 0.1875 / 25, 1.5))
    assert (found.slower, found.detection, found.restart) == (0.02, 600, 300)
    worse, better = recovery_of(SETTING, WORSE), recovery_of(SETTING, BETTER)
    assert worse.writes == pytest.approx(5) and better.writes == pytest.approx(0.3)
    assert worse.cost > found.cost > better.cost and worse.restart > found.restart > better.restart


def test_without_failures_a_simulation_takes_what_the_plan_says_and_its_checkpoints():
    """In a plan a rank waits for the slowest of all as long as it does on average in a simulation."""
    planned = forecast(SETTING)
    (outcome,) = (one.outcome for one in simulate(SETTING, [64], RATES["none"]) if not one.weak)
    parts = 1e3 / SETTING.total_steps * outcome.lost["stragglers"], planned.parts["stragglers"]
    assert parts[0] == pytest.approx(parts[1], rel=2e-3) and parts[1] > 0
    assert planned.parts["waiting for the host"] > 0
    training = outcome.wall - outcome.lost["checkpoints"]
    assert 1e3 / SETTING.total_steps * training == pytest.approx(planned.step_ms, rel=1e-4)


def test_a_simulated_run_s_ends_are_runs_at_the_ends_of_the_assumptions():
    rate = RATES["rsc-small"]
    strong, weak = simulate(SETTING, [64, 48], rate)[:2], simulate(SETTING, [64, 48], rate)[2:]
    first, does_not_divide = strong
    for end, assumed in zip(first.ends, (WORSE, BETTER), strict=True):
        alone = Simulator(run_of(SETTING, recovery_of(SETTING, assumed), rate, assumed)).simulate()
        assert alone.wall == end.wall and alone.failures == end.failures
    found = as_json(first)
    assert found["wall_s"]["low"] == first.ends[1].wall < first.outcome.wall < first.ends[0].wall
    per_second = found["samples_per_second"]
    assert per_second["middle"] == pytest.approx(4096 * 200_000 / first.outcome.wall)
    assert per_second["low"] < per_second["middle"] < per_second["high"]
    header, row, other = scale_rows(strong, False)
    assert row[header.index("samples/s")] == first.estimate(first.samples_per_second).text()
    assert row[header.index("efficiency, %")] == "100" and other[3] == "does not divide"
    assert does_not_divide.outcomes == [] and as_json(does_not_divide)["divides"] is False
    assert weak[1].outcome is not None, "as many samples on each of 48"
