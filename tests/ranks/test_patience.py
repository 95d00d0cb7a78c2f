"""Ranks wait for others that work for them, for as long as these give signs of life."""

import re
import time

import pytest

from flava_ds.processes import sign_of_life
from flava_ds.ranks.distributed import barrier, start, stop
from flava_ds.ranks.patience import done_by_some

pytestmark = pytest.mark.distributed

TIMEOUT_S = 3


def work(seconds: float, signs: bool) -> str:
    """Works for some time, silently or not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        if signs:
            sign_of_life()
    return "made"


def wait_for_one(seconds: float, signs: bool, silence_s: float) -> tuple[object, bool, str]:
    """Rank 1 works; returns the result, whether the work had ended by then, and what a barrier says."""
    world = start(TIMEOUT_S)
    begun = time.monotonic()
    own = (lambda: work(seconds, signs)) if world.rank == 1 else None
    result = done_by_some(world, own, silence_s)
    waited = time.monotonic() - begun >= seconds
    try:
        barrier(world)
    except RuntimeError as error:
        stop()
        return result, waited, str(error)
    return result, waited, ""


def test_all_wait_for_longer_than_a_collective_would(run_ranks):
    assert run_ranks(wait_for_one, 2, 2 * TIMEOUT_S, True, 1.5) == [(None, True, ""), ("made", True, "")]


def test_work_without_signs_of_life_is_left_to_the_next_collective(run_ranks):
    first, second = run_ranks(wait_for_one, 2, 2 * TIMEOUT_S + 2, False, 0.5)
    assert first[:2] == (None, False) and re.search("Timed out|timeout", first[2]), first
    assert second[:2] == ("made", True)


def fail_in_work() -> str:
    """Rank 1's work fails; rank 0 learns of it when rank 1 leaves."""
    world = start(TIMEOUT_S)

    def own() -> None:
        raise ZeroDivisionError

    try:
        done_by_some(world, own if world.rank == 1 else None, 60)
    except ZeroDivisionError:
        return "failed"
    return "returned"


def test_an_error_is_the_workers_own_and_nobody_waits_for_it(run_ranks):
    assert run_ranks(fail_in_work, 2) == ["returned", "failed"]


def alone() -> tuple[object, object]:
    """One rank has nobody to tell."""
    world = start(TIMEOUT_S)
    return done_by_some(world, None, 1), done_by_some(world, lambda: 5, 1)


def test_one_rank_just_works(run_ranks):
    assert run_ranks(alone, 1) == [(None, 5)]
