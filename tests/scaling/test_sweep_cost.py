"""What a sweep's estimate says."""

import pytest

from flava_ds.scaling.plan import Estimate
from flava_ds.scaling.sweep_cost import on_this_machine, sentence


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        ((1.2, 2.0, 3.0), "4 runs: 8e+10 FLOPs, 2 (1.2 to 3) hours here"),
        ((0.1, 0.2, 0.5), "4 runs: 8e+10 FLOPs, 12 (6 to 30) minutes here"),
        ((0.001, 0.002, 0.01), "4 runs: 8e+10 FLOPs, 7.2 (3.6 to 36) seconds here"),
    ],
)
def test_time_is_in_a_unit_that_fits(hours, said):
    assert sentence(4, 8e10, Estimate(*hours), "hours", "here") == said


def test_finished_runs_give_the_rate():
    found, how = on_this_machine(7200e9, 1e9, {"flops": 50e9, "seconds": 100})
    assert (found.low, found.middle, found.high) == (
        4.0,
        4.0,
        4.0,
    ) and how == "at the rate of the finished runs"
    found, how = on_this_machine(3600e9, 1e9, {})
    assert found.low < found.middle < found.high and "of the 1 GFLOP/s of its matrix products" in how
