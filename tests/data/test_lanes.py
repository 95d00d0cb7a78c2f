"""Positions of lanes, against a count of every micro-step before."""

import random
from collections import Counter
from fractions import Fraction

import pytest

from flava_ds.data.lanes import LanePositions
from flava_ds.data.round_robin import RoundRobin

SIZES = {"a": 3, "b": 5, "c": 8}


def schedule() -> RoundRobin:
    """Three sources by uneven weights, which change at step 40."""
    shares = [
        {"a": Fraction(6, 10), "b": Fraction(3, 10), "c": Fraction(1, 10)},
        {"a": Fraction(1, 10), "b": Fraction(2, 10), "c": Fraction(7, 10)},
    ]
    return RoundRobin([(0, shares[0]), (40, shares[1])], {"a": 0, "b": 1, "c": 2}, seed=5)


def walked(round_robin: RoundRobin, micro_steps: int, lanes: int, steps: int) -> dict:
    """The lane of every micro-step, and the samples of its source that the lane has had, one by one."""
    drawn, found = Counter(), {}
    for step in range(steps):
        source = round_robin.source_at(step)
        for micro in range(micro_steps):
            lane = (step * micro_steps + micro) % lanes
            found[step, micro] = lane, drawn[source, lane] * SIZES[source]
            drawn[source, lane] += 1
    return found


@pytest.mark.parametrize("seed", range(30))
def test_positions_are_those_of_a_walk_over_all_micro_steps(seed):
    """From the start, ahead, back, and the same step again."""
    draw = random.Random(seed)
    micro_steps, lanes = draw.randint(1, 20), draw.randint(1, 9)
    round_robin, steps = schedule(), 90
    found = walked(round_robin, micro_steps, lanes, steps)
    positions = LanePositions(round_robin, SIZES, micro_steps, lanes)
    for step in [*range(5), *(draw.randrange(steps) for _ in range(30))]:
        source = round_robin.source_at(step)
        for micro in range(micro_steps):
            assert positions.place(source, step, micro) == found[step, micro], (micro_steps, lanes)


@pytest.mark.parametrize(("micro_steps", "lanes", "counted"), [(64, 8, 0), (1, 1, 0), (65, 8, 1), (3, 4, 3)])
def test_only_micro_steps_that_the_lanes_do_not_share_evenly_are_counted(micro_steps, lanes, counted):
    positions = LanePositions(schedule(), SIZES, micro_steps, lanes)
    positions.place(positions.round_robin.source_at(80), 80, 0)
    assert sum(positions._more.values()) == 80 * counted
