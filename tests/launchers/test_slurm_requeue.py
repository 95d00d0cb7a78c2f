"""The batch script at its time limit: the real trainer behind it, stand-ins only for Slurm's own commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "srun": 'echo $$ > srun.pid; while [ "$1" != env ]; do shift; done; exec "$@"',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat srun.pid)"',
    "scontrol": 'echo "scontrol $*" >> calls',
}
"""srun runs its command here; scancel sends the signal to it, as Slurm does to the steps of a job; scontrol
writes down what is asked.
"""

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.usefixtures("demo_data")]


def start(folder: Path, *overrides: str, **variables: str) -> subprocess.Popen:
    """Starts the batch script as Slurm would, on one process; how it ends is told, as a sweep tells it."""
    programs = folder / "bin"
    programs.mkdir()
    for name, body in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "PORT": "0",
        "OMP_NUM_THREADS": "1",
    }
    path = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "RESTARTS": "0",
    }
    command = [
        "bash",
        "-c",
        'trap "echo ended with \\$?" EXIT; source "$0" "$@"',
        str(ROOT / "launchers" / "slurm.sbatch"),
        "flava_debug",
        "--logging.no-tensorboard",
        *overrides,
    ]
    output = (folder / "output").open("w")
    return subprocess.Popen(
        command, cwd=folder, env={**kept, **job, **path, **variables}, stdout=output, stderr=subprocess.STDOUT
    )


def steps_logged(folder: Path) -> int:
    """Counts the steps in the run's log."""
    log = folder / "runs" / "flava_debug" / "log.jsonl"
    return sum("step" in json.loads(line) for line in log.read_text().splitlines()) if log.exists() else 0


def end_of(job: subprocess.Popen, folder: Path) -> str:
    """Waits for the script and returns what it printed."""
    try:
        job.wait(300)
    finally:
        job.kill()
    return (folder / "output").read_text()


def started(folder: Path, **variables: str) -> subprocess.Popen:
    """Starts a job and waits for three of its steps."""
    job = start(folder, "--training.total-steps", "100000", **variables)
    deadline = time.monotonic() + 300
    while steps_logged(folder) < 3 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return job


def check_stopped(job: subprocess.Popen, folder: Path) -> str:
    """Checks that a job ends as stopped, with a checkpoint of its last step; returns what it has said."""
    said = end_of(job, folder)
    assert job.returncode == 143 and said.endswith("ended with 143\n"), said[-3000:]
    checkpoints = folder / "runs" / "flava_debug" / "checkpoints"
    saved = int((checkpoints / "latest").read_text().split()[0].removeprefix("step_"))
    assert saved == steps_logged(folder) >= 3, (
        "the checkpoint is that of the last step, not one that every_steps wrote"
    )
    return said


def test_time_limit_leaves_a_checkpoint_and_a_requeued_job(tmp_path):
    """The last task of an array has the array's number as its job's: its siblings train on."""
    job = started(tmp_path, SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID="1")
    job.send_signal(signal.SIGUSR1)
    assert "job 77_1 is requeued" in check_stopped(job, tmp_path)
    assert (tmp_path / "calls").read_text() == "scancel --signal=TERM 77_1\nscontrol requeue 77_1\n"


def test_a_canceled_job_has_stopped_and_is_not_requeued(tmp_path):
    """Slurm sends SIGTERM to the steps and to the script, whose end a sweep notes."""
    job = started(tmp_path)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    job.send_signal(signal.SIGTERM)
    check_stopped(job, tmp_path)
    assert not (tmp_path / "calls").exists()


def test_failure_is_not_requeued(tmp_path):
    job = start(tmp_path, "--codebook-weights", "gone")
    said = end_of(job, tmp_path)
    assert job.returncode not in (0, None) and "gone" in said and not (tmp_path / "calls").exists(), said[
        -3000:
    ]
