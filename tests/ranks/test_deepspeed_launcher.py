"""Signals to DeepSpeed's launcher: no traceback, whenever they come, and the ranks end first."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flava_ds.ranks.launch import LAUNCHER, world_info

IMPORTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "deepspeed":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from flava_ds.ranks import deepspeed_launcher
deepspeed_launcher.main()
"""
RANK = """
import os, signal, time
def save(*_):
    time.sleep(1)
    os.write(1, f"saved {os.environ['RANK']}\\n".encode())
    os._exit(130)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, lambda *_: None)  # the launcher sends it, too
os.write(1, b"ready\\n")
time.sleep(600)
"""


def test_while_deepspeed_is_imported():
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (130, "error: interrupted\n", "")


def launched(script: Path) -> subprocess.Popen:
    """Starts two ranks that run a script."""
    words = ["-u", "-m", LAUNCHER, f"--world_info={world_info(2, 0)}", "--log_level", "critical"]
    return subprocess.Popen(
        [sys.executable, *words, str(script)],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("end", "status"), [("os._exit(2)", 2), ("os.kill(os.getpid(), 9)", 137)], ids=["status", "signal"]
)
def test_a_rank_that_fails_gives_its_status(tmp_path, end, status):
    (tmp_path / "rank.py").write_text(f"import os\n{end}\n")
    launcher = launched(tmp_path / "rank.py")
    said, errors = launcher.communicate()
    assert (launcher.returncode, said) == (status, "") and "Traceback" not in errors, errors
    assert ("a rank was killed by SIGKILL\n" in errors) == (status == 137), errors


@pytest.mark.distributed
def test_while_ranks_train(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    launcher = launched(tmp_path / "rank.py")
    assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    said, errors = launcher.communicate()
    assert sorted(said.splitlines()) == ["saved 0", "saved 1"] and launcher.returncode == 130
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors


@pytest.mark.distributed
def test_sigusr1_to_the_launcher_alone_stops_the_ranks(tmp_path):
    """As a sweep passes it on: the launcher waits for the checkpoint."""
    stops = RANK.replace("signal.SIGTERM, lambda *_: None", "signal.SIGTERM, save")
    (tmp_path / "rank.py").write_text(stops)
    launcher = launched(tmp_path / "rank.py")
    assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    launcher.send_signal(signal.SIGUSR1)
    said, errors = launcher.communicate(timeout=60)
    assert sorted(said.splitlines()) == ["saved 0", "saved 1"]
    assert launcher.returncode == 128 + signal.SIGUSR1 and "Traceback" not in errors, errors
