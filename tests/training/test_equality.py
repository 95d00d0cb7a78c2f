"""Ranks, ZeRO stages, offloading, accumulation, activation checkpointing and the idle switch against plain
torch in one process, to 1e-6.

`benchmarks/equality.py` runs the whole table of docs/equality.md; here every value of every column occurs at
least once.
"""

from __future__ import annotations

import pytest
from equality_batches import CONDITIONS, KINDS, SIZE, STEPS, condition_at, kind_at, parts_of
from equality_scenarios import (
    OBSERVED,
    Scenario,
    compare,
    compare_all,
    read_references,
    scenario_config,
    write_references,
)

from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind

TOLERANCE = 1e-6
PLANNED = {
    1: [Scenario("zero0", checkpointing=True), Scenario("zero1", 4)],
    2: [
        Scenario("zero0"),
        Scenario("zero2", 3, idle="zeros"),
        Scenario("zero3_offload", idle="zeros"),
        Scenario("zero1", arithmetic="fp32"),
        Scenario("zero1_no_overlap", 3, idle="zeros"),
    ],
    3: [Scenario("zero2_offload"), Scenario("zero3", 2, checkpointing=True)],
    4: [Scenario("zero1_offload", 3, idle="zeros"), Scenario("zero1")],
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The file of the runs in plain torch."""
    return write_references(sum(PLANNED.values(), []), tmp_path_factory.mktemp("reference"))


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("ranks", PLANNED)
def test_every_way_to_run_equals_plain_torch(run_ranks, tmp_path, expected, ranks):
    for found in run_ranks(compare_all, ranks, PLANNED[ranks], expected, tmp_path):
        for scenario, differences in zip(PLANNED[ranks], found, strict=True):
            assert differences.losses < TOLERANCE and differences.norms < TOLERANCE, (scenario, differences)
            if scenario.arithmetic == "fp64":
                assert differences.gradients < TOLERANCE and differences.parameters < TOLERANCE, (
                    scenario,
                    differences,
                )


def test_steps_meet_every_condition_in_every_kind_and_the_observed_ones_all_conditions():
    assert {(condition_at(step), kind_at(step)) for step in range(STEPS)} == {
        (condition, kind) for condition in CONDITIONS for kind in KINDS
    }
    assert {condition_at(step) for step in OBSERVED} == set(CONDITIONS) and {
        kind_at(step) for step in OBSERVED
    } == set(Kind)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_differ_in_terms_and_some_have_none(tmp_path, ranks):
    """Lengths, masked tokens, masked patches and matched pairs differ between ranks; with one part only, all
    ranks but the first have none.
    """
    config = scenario_config(Scenario(), tmp_path)
    module = build_task(config)
    for step in range(STEPS):
        parts = parts_of(step, config, ranks)
        counts = [
            {name: count for name, count in module.counts(part).items() if name != "itm"} for part in parts
        ]
        if condition_at(step) == "unequal":
            assert all(len({count[name] for count in counts}) > 1 for name in counts[0]), step
            assert kind_at(step) == Kind.IMAGE or len({part["input_ids"].shape for part in parts}) == ranks
        elif condition_at(step) == "one part":
            assert all(count > 0 for count in counts[0].values()) and not any(
                count for part in counts[1:] for count in part.values()
            ), step
        elif condition_at(step) == "none":
            assert not any(count for part in counts for count in part.values()), step
        elif condition_at(step) == "half masked" and kind_at(step) == Kind.PAIR:
            assert all(len(part["masked_samples"]) == part.size // 2 == SIZE // ranks // 2 for part in parts)


def test_idle_switches_differ_by_more_than_the_tolerance(expected):
    frozen, zeros = (read_references(expected)[idle, "fp64"] for idle in ("frozen", "zeros"))
    assert compare(zeros, frozen).parameters > 1e3 * TOLERANCE
