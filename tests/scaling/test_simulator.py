"""Simulated runs: without failures exact arithmetic, with failures the published shares of useful time."""

import dataclasses
import math

import numpy as np
import pytest

from flava_ds.scaling.failures import (
    LLAMA3,
    LLAMA3_DAYS,
    LLAMA3_GPUS,
    RATES,
    Recovery,
    best_interval,
    daly_interval,
)
from flava_ds.scaling.simulator import CAUSES, Run, Simulator, StepCost, normal_quantile

RECOVERY = Recovery(stands=1, writes=60, slower=0.0, detection=120, restart=600)


def useful_share(recovery: Recovery, mean_time: float, interval: float) -> float:
    """Returns the share of wall time that is training which is kept, to first order; 0 when nothing is.

    A failure loses half an interval, the time that its checkpoint took to reach the disk, detection and
    restart. Source: Kokolis et al. 2025, equation 1, with an asynchronous write.
    """
    lost = interval / 2 + recovery.writes + recovery.detection + recovery.restart
    broken = 0.0 if math.isinf(mean_time) else lost / mean_time
    overhead = 0.0 if math.isinf(interval) else recovery.cost / interval
    return max(0.0, 1 - broken) / (1 + overhead)


def run_of_steps(seconds: float, days: float, ranks: int, **changes: object) -> Run:
    """A run of equal steps."""
    cost = StepCost(1.0, {**dict.fromkeys(CAUSES, 0.0), "computing": seconds}, 0.0)
    run = Run(round(days * 86_400 / seconds), [cost], ranks, ranks / 8, RECOVERY, RATES["none"])
    return dataclasses.replace(run, **changes)


def test_without_failures_only_checkpoints_are_lost():
    outcome = Simulator(run_of_steps(1.0, 0.1, 8, interval=3600.0)).simulate()
    assert outcome.checkpoints == 2 and outcome.wall == pytest.approx(8640 + 2)
    assert outcome.lost["computing"] == pytest.approx(8640) and outcome.steps == 8640
    assert sum(outcome.lost.values()) == pytest.approx(outcome.wall)


def test_llama_3_s_effective_time():
    """54 days on 16,384 H100 with 419 unexpected interruptions: more than 90 % of the time was useful.

    Source: The Llama 3 Herd of Models, section 3.3.4. Detection and restart are ours: 1 and 10 minutes.
    """
    assert sum(LLAMA3.values()) == 419
    run = run_of_steps(30.0, LLAMA3_DAYS * 0.93, LLAMA3_GPUS, rate=RATES["llama3"])
    simulator = Simulator(run, seed=1)
    assert simulator.mean_time / 3600 == pytest.approx(3.09, rel=0.01)
    outcome = simulator.simulate()
    assert outcome.wall / 86_400 == pytest.approx(LLAMA3_DAYS, rel=0.05)
    assert abs(outcome.failures - 419) < 3 * 419**0.5
    assert 0.90 < outcome.useful < 0.95
    expected = useful_share(RECOVERY, simulator.mean_time, simulator.interval)
    assert outcome.useful == pytest.approx(expected, abs=0.02)
    assert sum(outcome.lost.values()) == pytest.approx(outcome.wall, rel=1e-6)


def test_daly_s_interval_is_the_best_of_its_neighbours():
    mean = 3 * 3600.0
    recovery = dataclasses.replace(RECOVERY, stands=30.0, writes=0.0)
    best = best_interval(recovery, mean)
    assert best == pytest.approx(daly_interval(30.0, mean)) and 700 < best < 900
    share = useful_share(recovery, mean, best)
    assert share > useful_share(recovery, mean, best / 2) and share > useful_share(recovery, mean, best * 2)
    assert best_interval(dataclasses.replace(recovery, writes=5000.0), mean) == 5000, (
        "not before it is written"
    )


def test_slowest_of_many_ranks():
    """Expected largest of n normal numbers: 1.42 for 8, 3.24 for 1,000 (Harter 1961)."""
    p = np.array([0.5, 0.975, 0.025, 0.999])
    assert normal_quantile(p) == pytest.approx([0, 1.95996, -1.95996, 3.09023], abs=1e-3)
    for ranks, largest in ((8, 1.4236), (1000, 3.2414)):
        simulator = Simulator(run_of_steps(1.0, 0.1, ranks))
        assert simulator._slowest(1.0, 40_000) / 40_000 == pytest.approx(largest, rel=0.01)


def test_a_slow_loader_is_what_the_step_waits_for():
    run = run_of_steps(0.1, 0.01, 1, pictures_per_second=500.0, pictures_per_step=100.0)
    outcome = Simulator(run).simulate()
    assert outcome.wall == pytest.approx(run.steps * 0.2, rel=0.01)
    assert outcome.lost["loader"] == pytest.approx(run.steps * 0.1, rel=0.02)
