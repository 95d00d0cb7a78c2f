"""Which run a demo takes up again, and what it remembers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flava_ds.demo import state as demo_state
from flava_ds.demo.state import STATE, SUMMARY, Plan, open_demo

SHORT = Plan(work="two-minutes")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """A working directory without runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(plan=SHORT, new=False):
    """Opens a demo and lets go of it, as the end of its process does."""
    demo = open_demo(plan, ranks=2, new=new)
    demo.lock.close()
    return demo


def test_an_unfinished_demo_is_taken_up_with_its_decisions():
    begin().save(precision="bf16")
    again = begin()
    assert again.run_path == Path("runs/demo-two-minutes")
    assert again.state["precision"] == "bf16" and again.state["interruptions"] == 1
    assert begin().state["interruptions"] == 2


def test_a_finished_demo_is_left_alone():
    (begin().run_path / SUMMARY).write_text("{}")
    assert begin().run_path.name == "demo-two-minutes-2"
    assert begin().run_path.name == "demo-two-minutes-2", "the second one is not finished"


def test_the_latest_of_several_unfinished_ones_is_taken_up():
    first, second = begin(), begin(new=True)
    assert second.run_path.name == "demo-two-minutes-2"
    os.utime(first.run_path / STATE, (2_000_000_000, 2_000_000_000))
    assert begin().run_path == first.run_path


def test_other_plans_and_other_recipes_are_other_demos(monkeypatch):
    begin()
    plans = [Plan(work="hour"), Plan(work=None, minutes=7), Plan(work="two-minutes", train_codebook=True)]
    assert [begin(plan).run_path.name for plan in plans] == [
        "demo-hour",
        "demo-7min",
        "demo-two-minutes-codebook",
    ]
    monkeypatch.setattr(Plan, "fingerprint", lambda plan: "that of a changed recipe")
    assert begin().run_path.name == "demo-two-minutes-2"


def test_what_decides_the_result_is_in_the_fingerprint():
    assert SHORT.fingerprint() == Plan(work="two-minutes").fingerprint()
    assert (
        len(
            {
                plan.fingerprint()
                for plan in (SHORT, Plan(work="hour"), Plan(work="two-minutes", train_codebook=True))
            }
        )
        == 3
    )


def test_a_demo_that_a_process_is_at_is_not_taken_up():
    code = (
        "import sys; from flava_ds.demo.state import Plan, open_demo; demo = "
        "open_demo(Plan(work='two-minutes'), 2, new=False); "
    )
    code += "print(demo.run_path, flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline().strip() == "runs/demo-two-minutes"
        assert begin().run_path.name == "demo-two-minutes-2"
    finally:
        other.kill()
        other.wait()
    os.utime("runs/demo-two-minutes/" + STATE, (2_000_000_000, 2_000_000_000))
    assert begin().run_path.name == "demo-two-minutes", "what a killed process has left can be taken up"


def test_seconds_of_a_phase_are_on_disk_while_it_runs_and_add_up_over_interruptions(monkeypatch):
    monkeypatch.setattr(demo_state, "SAVE_EVERY_S", 0.01)
    demo = begin()
    demo.save(phases={"train": 100.0})
    with pytest.raises(KeyboardInterrupt), demo.timed("train"):
        on_disk = lambda: json.loads((demo.run_path / STATE).read_text())["phases"]["train"]  # noqa: E731
        deadline = time.monotonic() + 60
        while on_disk() <= 100.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise KeyboardInterrupt
    again = begin()
    stopped_at = again.used_s()
    with again.timed("train"), again.timed("within"):
        pass
    assert 100.0 < stopped_at < again.state["phases"]["train"] and begin().used_s() == again.used_s()


def test_minutes_leave_the_time_that_phases_did_not_use():
    demo = begin(Plan(work=None, minutes=10))
    demo.save(phases={"codebook": 60.0, "train": 100.0}, total_steps=7)
    assert demo.left_s() == 440.0 and demo.total_steps == 7
