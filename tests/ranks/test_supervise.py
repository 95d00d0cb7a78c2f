"""A supervised run: a killed rank costs the steps since the latest checkpoint and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_runs import curve, steps_of
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flava_ds.ranks import supervise

SETTINGS = [
    "--training.total-steps",
    "30",
    "--schedule.warmup-steps",
    "2",
    "--checkpoint.every-steps",
    "8",
    "--logging.no-tensorboard",
]

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def start(folder: Path, name: str) -> subprocess.Popen:
    """Starts a run of two ranks with one restart."""
    command = [
        sys.executable,
        "-m",
        "flava_ds.cli",
        "train",
        "flava_debug",
        "--ranks",
        "2",
        "--max-restarts",
        "1",
        "--name",
        name,
        *SETTINGS,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def ranks_of(supervisor: int) -> dict[int, int]:
    """Returns the process of each rank that the supervisor has started, by rank."""
    found = {}
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        variables = dict(
            pair.split("=", 1)
            for pair in Path(f"/proc/{child}/environ").read_text().split("\0")
            if "=" in pair
        )
        found[int(variables.get("RANK", -1))] = int(child)
    return found


def kill_rank(job: subprocess.Popen, folder: Path, name: str, rank: int, after_step: int) -> None:
    """Kills a rank once the run has logged a step."""
    deadline = time.monotonic() + 300
    while not any(record["step"] >= after_step for record in steps_of(folder / "runs" / name)[-1:]):
        assert job.poll() is None and time.monotonic() < deadline, job.stderr.read()
        time.sleep(0.02)
    os.kill(ranks_of(job.pid)[rank], signal.SIGKILL)


@pytest.mark.usefixtures("demo_data")
def test_killed_ranks_are_started_again_and_the_curve_stays_the_same(tmp_path):
    undisturbed = start(tmp_path, "undisturbed")
    said = undisturbed.communicate(timeout=300)[1]
    assert undisturbed.returncode == 0 and "error" not in said, said

    disturbed = start(tmp_path, "disturbed")
    kill_rank(disturbed, tmp_path, "disturbed", rank=1, after_step=9)
    # until the restarted run has cut the log back to its checkpoint
    while steps_of(tmp_path / "runs" / "disturbed")[-1]["step"] > 9:
        assert disturbed.poll() is None, disturbed.stderr.read()
        time.sleep(0.02)
    kill_rank(disturbed, tmp_path, "disturbed", rank=0, after_step=18)
    said = disturbed.communicate(timeout=300)[1]
    assert disturbed.returncode == 128 + signal.SIGKILL, said
    assert (
        said.count("error: rank 0 was killed by SIGKILL in the last of 2 attempts") == 1
        and "Traceback" not in said
    ), said
    found, expected = (curve(tmp_path / "runs" / name) for name in ("disturbed", "undisturbed"))
    assert len(expected) == 30 and 18 <= len(found) < 30 and found == expected[: len(found)]


PROGRAM = """
import pathlib, signal, sys, time

def stop(number, frame):
    pathlib.Path("asked").write_text(str(number))
    sys.exit(128 + number)

signal.signal(signal.SIGUSR1, stop)
pathlib.Path("ready").touch()
time.sleep(300)
"""


def test_slurms_signal_reaches_the_ranks(tmp_path):
    """Slurm's --signal=USR1 goes to every process of a step: the agent has to pass it on instead of dying of
    it.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "flava_ds.ranks.supervise",
        "--standalone",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "1",
        "program.py",
    ]
    job = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 128 + signal.SIGUSR1 and (tmp_path / "asked").read_text() == str(
        int(signal.SIGUSR1)
    ), said


def test_a_machine_without_a_temporary_folder_is_one_line(monkeypatch, capsys):
    def without(*_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(supervise.torchrun, "run", without)
    assert supervise.main(["--nproc-per-node", "1", "nothing.py"]) == 2
    assert capsys.readouterr().err == (
        "error: No usable temporary directory found in ['/tmp']; set TMPDIR to a folder that can be written\n"
    )


@pytest.mark.parametrize(
    ("restarts", "exitcode", "status", "said"),
    [
        (
            "2",
            2,
            2,
            "ended with status 2 in the last of 3 attempts; mend what the error above says, and",
        ),
        ("0", 1, 1, "ended with status 1 in its only attempt; the same command goes on"),
        ("1", -9, 137, "was killed by SIGKILL in the last of 2 attempts; the same command goes on"),
    ],
)
def test_the_last_line_advises_what_helps(monkeypatch, capsys, restarts, exitcode, status, said):
    """What a user has to mend is not mended by the same command."""

    def fail(_: object) -> None:
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=exitcode, error_file="none")
        raise ChildFailedError("program", {1: failure})

    monkeypatch.setattr(supervise.torchrun, "run", fail)
    assert supervise.main(["--max-restarts", restarts, "program.py"]) == status
    assert capsys.readouterr().err.startswith(f"error: rank 1 {said}")


def test_ranks_of_one_machine_meet_at_its_loopback_whatever_its_name(monkeypatch):
    """A name that does not resolve had them wait for each other without a word."""
    started = []
    monkeypatch.setattr(supervise.torchrun, "run", started.append)
    assert supervise.main(["--standalone", "--nproc-per-node", "2", "nothing.py"]) == 0
    assert supervise.main(["--nnodes", "2", "--rdzv-endpoint", "head:29500", "nothing.py"]) == 0
    assert [options.local_addr for options in started] == ["127.0.0.1", None]
