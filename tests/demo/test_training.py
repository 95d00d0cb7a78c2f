"""The demo's view of its training process, on small real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flava_ds.demo.training import follow_training, seconds_per_step
from flava_ds.errors import UserError
from flava_ds.ranks.launch import Launch
from flava_ds.recipes import resolve

WRITES_TWO_STEPS = """
import json, os, sys, time
with open(sys.argv[1], "w") as log:
    log.write(json.dumps({"versions": {}}) + "\\n")
    for step in (0, 1):
        speeds = {"samples_per_second": 9.0, "data_wait": 0.1, "flops_per_second": 2e9, "mfu": 0.2}
        speeds |= {"peak_memory_gib": 0.5, "eta_s": 1.0}
        log.write(json.dumps({"step": step, "loss": 3.0, "loss/mlm": 8.25, **speeds}) + "\\n")
print("speaks to train.log", os.environ["A_VARIABLE"])
"""


def launch(code: str, *words: str) -> Launch:
    """A launch that runs Python code."""
    return Launch(arguments=[sys.executable, "-c", code, *words], environment={"A_VARIABLE": "was set"})


def test_follows_a_run_to_its_end(tmp_path, capsys):
    follow_training(launch(WRITES_TWO_STEPS, str(tmp_path / "log.jsonl")), tmp_path, total_steps=2)
    assert (tmp_path / "train.log").read_text() == "speaks to train.log was set\n"
    printed = capsys.readouterr().out
    assert "step 2/2 | mlm 8.250 | 9.0 samples/s" in printed and "A_VARIABLE='was set'" in printed


def test_failure_is_one_error_with_the_last_words(tmp_path):
    code = "import sys\nprint('error: shard 3 is damaged')\nprint('noise of a launcher')\nsys.exit(3)"
    with pytest.raises(
        UserError, match=r"training ended with status 3: shard 3 is damaged \(all of it: .*train.log\)"
    ):
        follow_training(launch(code), tmp_path, total_steps=2)


def test_killed_process_is_an_error(tmp_path):
    with pytest.raises(UserError, match="training ended with status -9: it printed nothing"):
        follow_training(
            launch("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"), tmp_path, total_steps=2
        )


def test_interruption_ends_the_process(tmp_path, monkeypatch):
    """Also where the tests run in a shell's background, whose processes ignore interruptions."""
    waits = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )

    def interrupt(process, *_):
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        pids.append(process.pid)
        raise KeyboardInterrupt

    pids: list[int] = []
    monkeypatch.setattr("flava_ds.demo.training.show_progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow_training(launch(waits), tmp_path, total_steps=2)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


LAUNCHES = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
says_who_it_is = "import os, time; print(os.getppid(), os.getpid(), flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", says_who_it_is]).wait()
"""
FOLLOWS = """
import pathlib, sys
from flava_ds.demo.training import follow_training
from flava_ds.ranks.launch import Launch
follow_training(Launch(arguments=[sys.executable, "-c", sys.argv[1]]), pathlib.Path("."), 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_demo_leaves_no_process_behind(tmp_path, number):
    """Neither the launcher, which does not pass signals on, as DeepSpeed's does not, nor what it has
    launched.
    """
    demo = subprocess.Popen([sys.executable, "-c", FOLLOWS, LAUNCHES], cwd=tmp_path)
    try:
        wait_for(
            lambda: (tmp_path / "train.log").exists() and (tmp_path / "train.log").read_text().endswith("\n")
        )
        launcher, rank = (tmp_path / "train.log").read_text().split()
        assert not has_ended(launcher) and not has_ended(rank)
        demo.send_signal(number)
        demo.wait()
        wait_for(lambda: has_ended(launcher) and has_ended(rank))
    finally:
        demo.kill()


def has_ended(pid):
    """Gone, or left for an init process that may not care."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def wait_for(happened, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_seconds_per_step_weighs_sources_and_survives_a_slow_first_step(tmp_path):
    config = resolve("demo", [])
    assert {name: source.weight for name, source in config.data.sources.items()} == {
        "pair": 0.70,
        "image": 0.15,
        "text": 0.15,
    }
    steps = [("pair", 9000), ("image", 500), ("pair", 2000), ("pair", 4000)]
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"step": i, "loss": 1.0, "source": source, "seconds_per_step": ms / 1000}) + "\n"
            for i, (source, ms) in enumerate(steps)
        )
    )
    # pair: median of 9, 2 and 4 s; image: 0.5 s; text was not drawn and counts as the slowest.
    assert seconds_per_step(log, config) == pytest.approx(0.70 * 4.0 + 0.15 * 0.5 + 0.15 * 4.0)
    heavier = config.with_sources({"pair": config.data.sources["pair"]})
    assert seconds_per_step(log, heavier) == pytest.approx(4.0)


def test_log_without_steps_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no step was logged"):
        seconds_per_step(tmp_path / "log.jsonl", resolve("demo", []))
