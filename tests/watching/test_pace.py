"""The time left, on a clock that is made up."""

from fractions import Fraction

import pytest

from flava_ds.data.round_robin import RoundRobin
from flava_ds.watching.pace import Pace

SECONDS = {"pairs": 9.0, "text": 1.0}
TOTAL = 60


def etas(every: int, flops: dict[str, float]) -> list[tuple[float, float]]:
    """The time left after each record, as estimated and as it is, of a run that draws two sources in turn."""
    rotation = RoundRobin([(0, {"pairs": Fraction(1, 4), "text": Fraction(3, 4)})], {"pairs": 1, "text": 2})
    drawn = [rotation.source_at(step) for step in range(TOTAL)]
    pace, found = Pace(), []
    for first in range(0, TOTAL, every):
        own, rest = drawn[first : first + every], drawn[first + every :]
        steps = {name: own.count(name) for name in set(own)}
        work = {name: count * flops[name] for name, count in steps.items()}
        pace.add(sum(SECONDS[name] for name in own), steps, work)
        left = {name: rest.count(name) for name in SECONDS}
        found.append((pace.seconds(left), sum(SECONDS[name] for name in rest)))
    return found


@pytest.mark.parametrize("flops", [dict(SECONDS), {"pairs": 1.0, "text": 7.0}])
def test_a_record_of_one_step_says_nothing_of_the_steps_of_another_source(flops):
    """Whatever their FLOPs: time by the last step alone would jump ninefold from record to record."""
    for guess, truth in etas(1, flops)[8:]:
        assert guess == pytest.approx(truth)


def test_records_that_mix_sources_are_divided_by_work():
    for guess, truth in etas(3, dict(SECONDS)):
        assert guess == pytest.approx(truth)
    assert etas(3, dict(SECONDS))[-1] == (0, 0)


def test_the_estimate_follows_a_machine_that_slows_down_and_knows_no_unmet_source():
    pace = Pace()
    for _ in range(50):
        pace.add(1.0, {"text": 1}, {"text": 1.0})
    assert pace.seconds({"text": 10, "pairs": 10}) == pytest.approx(20)
    for _ in range(20):
        pace.add(3.0, {"text": 1}, {"text": 1.0})
    assert pace.seconds({"text": 10}) == pytest.approx(30, rel=0.05)
