"""What a sweep's estimate says."""

import pytest

from flava_ds.recipes import resolve
from flava_ds.scaling.plan import Estimate
from flava_ds.scaling.sweep_cost import key_of, on_this_machine, sentence


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


def test_runs_share_a_trace_only_if_their_steps_cost_the_same():
    def key(*words):
        return key_of(resolve("demo_vinvl", words))

    (name,) = resolve("demo_vinvl", []).drawn_sources
    for words in (
        ["--optimizer.lr", "1e-5", "--optimizer.weight-decay", "0.5", "--seed", "7"],
        ["--training.total-steps", "70", "--schedule.warmup-steps", "3"],
        [f"--data.sources.{name}.global-batch-size", "8", f"--data.sources.{name}.weight", "3"],
        ["--objectives.mmm-text.weight", "0.5", "--name", "other", "--logging.every-steps", "3"],
    ):
        assert key(*words) == key(), words
    for words in (
        [f"--data.sources.{name}.max-regions", "4"],
        ["--training.recompute-gelu"],
        ["--optimizer", "lamb"],
        ["--objectives.tag-contrast.weight", "0"],
        ["--model.text.hidden-size", "96"],
    ):
        assert key(*words) != key(), words
