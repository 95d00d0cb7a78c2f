"""The slowest rank, by hand-made times."""

import time

import pytest
import torch
from sample_batches import denominators, make_batch, tiny_config
from test_metrics import Time
from torch import nn

from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.objectives import global_contrastive
from flava_ds.watching import stragglers
from flava_ds.watching.stragglers import Slowest, StepClock, StragglerWatch, find_slowest


@pytest.fixture
def passing(monkeypatch) -> Time:
    """The time that the module sees."""
    monkeypatch.setattr(stragglers, "time", clock := Time())
    return clock


def test_the_clock_runs_until_the_first_forward_pass_ends(passing):
    clock, module = StepClock(torch.device("cpu")), nn.Linear(2, 2)
    clock.watch(module)
    clock.start()
    passing.now += 0.5
    module(torch.zeros(1, 2))
    passing.now += 8.0
    module(torch.zeros(1, 2))
    clock.start()
    passing.now += 0.25
    module(torch.zeros(1, 2))
    assert clock.take() == 0.75 and clock.take() == 0.0
    passing.now += 1.0
    module(torch.zeros(1, 2))
    assert clock.take() == 0.0, "a forward pass outside of a step, in an evaluation"


def test_the_clock_stops_before_contrastive_features_are_gathered(passing, monkeypatch):
    config = tiny_config()
    module, batch, clock = build_task(config), make_batch(Kind.PAIR, config), StepClock(torch.device("cpu"))
    original = global_contrastive.info_nce

    def slow_gather(*arguments):
        passing.now += 60.0
        return original(*arguments)

    monkeypatch.setattr(global_contrastive, "info_nce", slow_gather)
    clock.watch(module)
    clock.start()
    passing.now += 2.0
    module("step", batch, denominators(module, batch))
    assert passing.now == 62.0 and clock.take() == 2.0


@pytest.mark.gpu
def test_on_a_gpu_the_clock_counts_the_devices_time_and_does_not_wait_for_it():
    clock, matrix = StepClock(torch.device("cuda", 0)), torch.randn(8192, 8192, device="cuda")
    matrix @ matrix
    torch.cuda.synchronize()
    begun = time.perf_counter()
    clock.start()
    for _ in range(20):
        matrix @ matrix
    clock.stop()
    asked = time.perf_counter() - begun
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - begun
    assert asked < 0.5 * elapsed and 0.5 * elapsed < clock.take() <= 1.01 * elapsed and clock.take() == 0.0


def test_the_slowest_rank_is_compared_with_the_median_and_told_its_cause():
    hosts = ["a", "a", "b", "b"]
    found = find_slowest([0.1, 0.1, 0.1, 0.1], [1.0, 1.1, 2.0, 1.2], hosts)
    assert (found.rank, found.host, found.cause, found.lags) == (
        2,
        "b",
        "compute",
        True,
    ) and found.seconds == pytest.approx(2.1)
    assert found.median == pytest.approx(1.2), "the lower median: of two ranks the faster one is the measure"
    found = find_slowest([0.1, 0.9, 0.1, 0.1], [1.0, 1.1, 1.0, 1.2], hosts)
    assert (found.rank, found.host, found.cause) == (1, "a", "data")
    assert (
        not find_slowest([0.0, 0.0], [1.0, 1.19], ["a", "b"]).lags
        and find_slowest([0.0, 0.0], [1.0, 1.21], ["a", "b"]).lags
    )
    assert not find_slowest([0.0, 0.0], [0.01, 0.02], ["a", "b"]).lags, "twice as long, but 10 ms"


def test_a_warning_needs_the_same_rank_for_several_lines():
    def line(rank: int, seconds: float) -> Slowest:
        return Slowest(rank, f"host{rank}", seconds, 1.0, "data")

    watch = StragglerWatch(3)
    said = [
        watch.see(line(*seen))
        for seen in (
            (1, 2.0),
            (1, 2.0),
            (2, 2.0),
            (2, 2.0),
            (2, 1.1),
            (2, 2.0),
            (2, 2.0),
            (2, 2.5),
            (2, 2.0),
            (2, 2.0),
            (2, 2.0),
        )
    ]
    assert [number for number, warning in enumerate(said) if warning] == [7, 10]
    assert (
        "rank 2 on host2: for 3 log lines it has taken 2.5 s a step" in said[7]
        and "2.5 times the median rank's 1 s" in said[7]
    )
    assert "loader processes of host2" in said[7] and "for 6 log lines" in said[10]
    assert StragglerWatch(0).see(line(1, 9.0)) is None
