"""The course of a demo: phases in order and only once, gates, and what stops it. Its whole course with real
training is run by `.ci/run`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flava_ds.demo import run as demo_run
from flava_ds.demo.phases import Phase
from flava_ds.demo.state import Plan, open_demo
from flava_ds.demo.works import WORKS
from flava_ds.errors import UserError
from flava_ds.watching.run_log import read_log

SHORT, GATED = Plan(work="two-minutes"), Plan(work="ten-minutes")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """A working directory without runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("minutes", [0.0, -1.0, 0.5, float("nan"), float("inf")])
def test_too_short_a_time_is_refused_before_anything_is_made(empty_folder, minutes):
    with pytest.raises(UserError, match="needs at least 1 minute"):
        demo_run.run(Plan(work=None, minutes=minutes), ranks=2)
    assert list(empty_folder.iterdir()) == []


def test_an_unknown_work_is_refused_with_the_ones_there_are(empty_folder):
    with pytest.raises(
        UserError,
        match=(
            "--work hours: no such work; did you mean 'hour'.; choose one of ten-minutes, hour, two-minutes"
        ),
    ):
        demo_run.run(Plan(work="hours"), ranks=2)
    with pytest.raises(UserError, match="--work None: no such work; choose one of"):
        demo_run.run(Plan(work=None), ranks=2)
    assert list(empty_folder.iterdir()) == []


@pytest.fixture
def three_phases(monkeypatch):
    """Phases that write files, of which the second one can be told to stop; and the names of what
    was done."""
    done, stops = [], []

    def act(name):
        def write(demo):
            done.append(name)
            if name == "second" and stops:
                raise stops.pop()
            demo.save(precision="fp32", export_difference=1e-6)
            (demo.run_path / name).touch()

        return write

    made = [
        Phase(name, "write a file", lambda demo, name=name: (demo.run_path / name).exists(), act(name))
        for name in ("first", "second", "third")
    ]
    monkeypatch.setattr(demo_run, "phases", lambda demo: made)
    monkeypatch.setattr(demo_run, "conclude", lambda demo: 0)
    return done, stops


def test_a_stopped_demo_goes_on_where_it_was(three_phases, capsys):
    done, stops = three_phases
    stops.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        demo_run.run(SHORT, ranks=2)
    assert "stopped; the same command resumes runs/demo-two-minutes" in capsys.readouterr().out
    assert demo_run.run(SHORT, ranks=2) == 0
    assert done == ["first", "second", "second", "third"]
    printed = capsys.readouterr().out
    assert (
        "resuming the demo that was stopped" in printed
        and "== 1/3 first: done before" in printed
        and "== 2/3 second: write a file" in printed
    )


def test_a_failed_phase_can_be_done_again(three_phases):
    done, stops = three_phases
    stops.append(UserError("training ended with status 1"))
    with pytest.raises(UserError):
        demo_run.run(SHORT, ranks=2)
    assert demo_run.run(SHORT, ranks=2) == 0 and done == ["first", "second", "second", "third"]


def evaluated(plan, **metrics):
    """A demo of which only the evaluation's metrics are given."""
    demo = open_demo(plan, ranks=2, new=True)
    demo.save(precision="fp32", total_steps=5, export_difference=1e-6, phases={"train": 61.0})
    found = {
        "metrics": {"matching/random/accuracy": 0.9, **metrics},
        "losses": {},
        "left_out": {"retrieval": "the time limit was reached"},
    }
    (demo.run_path / "evaluation.json").write_text(json.dumps(found))
    return demo


def test_missed_gates_decide_the_status_of_a_fixed_work(capsys):
    metric, least = next(iter(WORKS["ten-minutes"].thresholds.items()))
    demo = evaluated(GATED, **{metric: least})
    assert demo_run.conclude(demo) == 1
    summary = json.loads((demo.run_path / "demo.json").read_text())
    passed = {gate["what"]: gate["passed"] for gate in summary["gates"]}
    assert passed["image-text matching above chance"] and passed["zero-shot concept, flat style, top-5"]
    assert not passed["zero-shot concept, high contrast, top-5"], "what was not measured must not pass"
    assert (summary["work"], summary["steps"], summary["seconds"]) == (
        "ten-minutes",
        WORKS["ten-minutes"].total_steps,
        61.0,
    )
    printed = capsys.readouterr().out
    assert "MISS zero-shot concept, high contrast, top-5" in printed and "report.html" in printed


@pytest.mark.parametrize("plan", [SHORT, Plan(work=None, minutes=3)])
def test_without_gates_nothing_fails_and_it_says_what_was_left_out(plan, capsys):
    demo = evaluated(plan)
    assert demo_run.conclude(demo) == 0
    assert json.loads((demo.run_path / "demo.json").read_text())["gates"] == []
    printed = capsys.readouterr().out
    assert (
        "no gates: only --work ten-minutes and --work hour have them" in printed
        and "left out: retrieval (the time limit was reached)" in printed
    )


def test_time_left_is_told_once_the_machine_is_measured():
    demo = open_demo(SHORT, ranks=2, new=True)
    assert demo_run.time_left(demo) == ""
    demo.save(gemm_rate=100.0, fp32_rate=50.0)
    slow = demo_run.time_left(demo)
    demo.save(gemm_rate=1000.0, fp32_rate=500.0)
    assert slow.startswith(", very roughly ") and demo_run.time_left(demo) != slow
    assert demo_run.time_left(open_demo(Plan(work=None, minutes=3), ranks=2, new=True)) == " of 3"


SMALL_DEMO = """
import sys
from flava_ds.demo import run, works
from flava_ds.demo.state import Plan
options = [f"--data.sources.{name}.global-batch-size" for name in ("pair", "image", "text")]
batches = [word for option in options for word in (option, "8")]
batches += ["--data.sources.pair.masked-share", "0.5", "--logging.every-steps", "1"]
works.WORKS["small"] = works.Work(name="small", total_steps=30, overrides=tuple(batches))
every = run.phases
run.phases = lambda demo: [phase for phase in every(demo) if phase.name in ("data", "precision", "train")]
run.conclude = lambda demo: print("to the end", demo.state["interruptions"]) or 0
sys.exit(run.run(Plan(work="small"), ranks=1))
"""


@pytest.mark.slow
def test_a_killed_demo_trains_on_from_where_it_was(empty_folder):
    """Real training; kill -9 on the demo's process, as at the end of a session."""
    command, log = [sys.executable, "-c", SMALL_DEMO], Path("runs/demo-small/log.jsonl")
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not read_log(log).steps:
            assert time.monotonic() < deadline and demo.poll() is None
            time.sleep(0.05)
    finally:
        demo.kill()
        demo.wait()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "== 2/3 precision: done before" in again.stdout and "to the end 1" in again.stdout
    steps = [line["step"] for line in read_log(log).steps]
    assert steps == list(range(30)), "each step once, whichever process made it"
    assert Path("runs/demo-small/train.log").read_text().count("a fresh start") == 1, "the second one went on"
