"""Faults injected into the real trainer on two ranks: one line that says what it was, an end within a set
time, and curve and weights bitwise the same.

benchmarks/faults.py injects more of each kind.
"""

from __future__ import annotations

import json
import re

import pytest
from fault_cases import TIMEOUT_S, Gauntlet, Outcome

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

HUNG = f"has not answered for {TIMEOUT_S} s in step"


@pytest.fixture(scope="module")
def gauntlet(tmp_path_factory) -> Gauntlet:
    """The configuration and its undisturbed curve."""
    gauntlet = Gauntlet(tmp_path_factory.mktemp("faults"), steps=16)
    assert len(gauntlet.expected) == 16 and {record["kind"] for record in gauntlet.expected} == {
        "image",
        "text",
        "pair",
    }
    return gauntlet


def check(outcome: Outcome, *words: str, equal: bool | None = True) -> None:
    """Expects what the user has to see, and the curve of the run that went on."""
    assert all(word in outcome.said for word in words) and outcome.equal is equal, outcome


def test_kills_again_and_again_leave_curve_and_weights_as_they_are(gauntlet):
    """Two at each moment: at the start, inside a checkpoint write, and twice in steps."""
    outcome = gauntlet.kills(8)
    check(outcome)
    assert " 0 of them inside" not in outcome.fault


def test_killed_and_hanging_ranks_are_named(gauntlet):
    for rank, outcome in zip((1, 0), gauntlet.killed_ranks(), strict=True):
        check(outcome, f"error: rank {rank} (host ", "ended without a word in step")
    (outcome,) = gauntlet.hangs([0])  # it keeps the store; test_roll_call.py stops another one
    check(outcome, "error: rank 0 (host ", HUNG)


def test_signals_leave_a_checkpoint_of_the_last_step(gauntlet):
    for name, outcome in zip(("term", "usr1"), gauntlet.signals(), strict=True):
        check(outcome, "stopped by a signal after step", "start the same command again")
        header = json.loads((gauntlet.config(name).run_path / "log.jsonl").read_text().splitlines()[0])
        assert header["resumed"][0]["step"] == int(re.search(r"after step (\d+)", outcome.said)[1])


def test_a_full_disk_is_named(gauntlet):
    check(gauntlet.full_disk(), "error: ", "cannot be written", "make room")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(gauntlet):
    """Of the ways to be damaged, which test_checkpoint_reader.py has, the one that only a checksum finds."""
    (flipped,) = gauntlet.damaged(["with one bit flipped"])
    check(flipped, "weights_00001.safetensors is damaged: its sha256 differs")


def test_what_cannot_begin_is_refused(gauntlet):
    check(gauntlet.unwritable(), "error: ", "unwritable cannot be used", "make it writable", equal=None)
    check(
        gauntlet.other_data(),
        "error: rank 1 (host ",
        "reads other data for source",
        "samples, not 36",
        equal=None,
    )
    check(gauntlet.two_runs(), "error: ", "is in use: process")


def test_clocks_need_not_agree(gauntlet):
    check(gauntlet.skewed_clock())
