"""The schedule keeps its ratios at every prefix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.data.round_robin import RoundRobin
from flava_ds.errors import ConfigError

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(0.001, 100.0)), min_size=1, max_size=7).filter(lambda weights: sum(weights) > 0)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.integers(0, 1000))
def test_every_prefix_is_within_one_block_of_the_target(weights, seed):
    schedule = RoundRobin(weights, 1, seed)
    drawn = np.array([schedule.source_at(step) for step in range(1500)])
    counts = np.cumsum(drawn[:, None] == np.arange(len(weights)), 0)
    target = np.arange(1, 1501)[:, None] * (np.array(weights) / sum(weights))
    assert np.abs(counts - target).max() < 1 + 1e-9


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(1, 7), st.integers(0, 9), st.integers(0, 300))
def test_draws_before_counts_and_blocks_hold_together(weights, block_steps, seed, step):
    schedule = RoundRobin(weights, block_steps, seed)
    drawn = [schedule.source_at(s) for s in range(step + 1)]
    for source in range(len(weights)):
        assert schedule.draws_before(source, step) == drawn[:step].count(source)
    assert all(drawn[s] == drawn[s - s % block_steps] for s in range(step + 1))


def test_far_steps_first_or_last_give_the_same_schedule():
    jump, walk = RoundRobin([0.7, 0.15, 0.15], 1, 5), RoundRobin([0.7, 0.15, 0.15], 1, 5)
    far = [jump.source_at(step) for step in (20_000, 3, 9_999)]
    assert far == [[walk.source_at(step) for step in range(20_001)][step] for step in (20_000, 3, 9_999)]
    assert jump.draws_before(0, 20_000) == 14_000


def test_the_paper_ratios_over_a_period_and_the_seed_decides_ties():
    schedules = [RoundRobin([0.7, 0.15, 0.15], 1, seed) for seed in range(8)]
    for schedule in schedules:
        assert [schedule.draws_before(source, 20) for source in range(3)] == [14, 3, 3]
    assert len({tuple(schedule.source_at(step) for step in range(40)) for schedule in schedules}) > 1


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0]])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        RoundRobin(weights)
