"""Ranks whose launcher was killed: they leave with a checkpoint; those that a shell has started stay."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flava_ds.ranks import orphans

WAIT_S = 900.0
"""Not a measure of speed: a hang would last for ever."""

RANK = """
import os, pathlib, signal, time
from flava_ds.ranks import orphans
from flava_ds.ranks.stop_signals import StopRequest
orphans.POLL_S = 0.05
orphans.watch()
request = StopRequest()
with request.listening():
    pathlib.Path("rank").write_text(str(os.getpid()))
    deadline = time.monotonic() + 240
    while request.asked is None and not os.path.exists("end") and time.monotonic() < deadline:
        time.sleep(0.01)
    pathlib.Path("asked.new").write_text(str(request.asked))
    os.rename("asked.new", "asked")
"""
STARTS = "import pathlib, subprocess, sys; subprocess.Popen([sys.executable, *sys.argv[1:]]).wait()"


def until(true: Callable[[], bool]) -> None:
    """Waits."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_above_a_rank(folder: Path, levels: int, **variables: str) -> None:
    """Starts a rank below `levels` processes, the uppermost of which has 'deepspeed' in its command line, and
    kills that one.
    """
    (folder / "deepspeed.py").write_text(STARTS)
    words = ["-c", RANK]
    for _ in range(levels - 1):
        words = ["-c", STARTS, *words]
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in (orphans.TORCHRUN, orphans.DEEPSPEED, orphans.OPEN_MPI)
    }
    launcher = subprocess.Popen(
        [sys.executable, "deepspeed.py", *words],
        cwd=folder,
        env={**clean, **variables},
        stderr=subprocess.DEVNULL,
    )
    until((folder / "rank").exists)
    until(lambda: (folder / "rank").read_text() != "")
    launcher.kill()
    launcher.wait()


@pytest.mark.parametrize(
    ("variable", "levels"),
    [(orphans.TORCHRUN, 1), (orphans.DEEPSPEED, 1), (orphans.DEEPSPEED, 2), (orphans.OPEN_MPI, 1)],
)
def test_a_rank_without_its_launcher_is_asked_to_stop(tmp_path, variable, levels):
    killed_above_a_rank(tmp_path, levels, **{variable: "0"})
    until((tmp_path / "asked").exists)
    assert (tmp_path / "asked").read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize(
    ("variables", "levels"), [({}, 1), ({"RANK": "0", "WORLD_SIZE": "2"}, 1), ({orphans.TORCHRUN: "0"}, 2)]
)
def test_a_rank_whose_parent_is_no_launcher_goes_on(tmp_path, variables, levels):
    """What a shell starts outlives it, and so does a torchrun that a shell has started."""
    killed_above_a_rank(tmp_path, levels, **variables)
    time.sleep(1)  # twenty looks
    assert not (tmp_path / "asked").exists()
    (tmp_path / "end").touch()
    until((tmp_path / "asked").exists)
    assert (tmp_path / "asked").read_text() == "None"


def test_a_rank_that_is_stopping_is_not_asked_again(monkeypatch):
    """A second signal would cut its checkpoint short; DeepSpeed's launcher ends before the ranks that it has
    passed a signal on to.
    """
    sent = []
    monkeypatch.setattr(orphans, "is_stopping", lambda: True)
    monkeypatch.setattr(orphans.os, "kill", lambda *signal: sent.append(signal))
    orphans._wait([orphans.Launcher(pid=os.getppid() + 1, began=None, is_parent=True)])
    assert sent == []


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.usefixtures("demo_data")
@pytest.mark.parametrize("words", [[], ["--max-restarts", "1"]], ids=["deepspeed", "torchrun"])
def test_kill_9_of_the_launcher_ends_a_run_with_a_checkpoint(tmp_path, words):
    settings = [
        "--training.total-steps",
        "100000",
        "--schedule.warmup-steps",
        "2",
        "--checkpoint.every-steps",
        "0",
        "--logging.no-tensorboard",
    ]
    command = [
        sys.executable,
        "-m",
        "flava_ds.cli",
        "train",
        "flava_debug",
        "--ranks",
        "2",
        *words,
        *settings,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    run = tmp_path / "runs" / "flava_debug"
    log = run / "log.jsonl"
    try:
        until(lambda: launcher.poll() is not None or (log.exists() and len(log.read_text().splitlines()) > 1))
        assert launcher.poll() is None
    finally:
        launcher.kill()
        launcher.wait()
    until(lambda: not (run / "lock.json").exists())
    assert len(list((run / "checkpoints").glob("step_*/manifest.json"))) == 1
