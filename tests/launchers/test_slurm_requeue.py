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


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """Starts the batch script as Slurm would, on one process."""
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
        str(ROOT / "launchers" / "slurm.sbatch"),
        "flava_debug",
        "--logging.no-tensorboard",
        *overrides,
    ]
    output = (folder / "output").open("w")
    return subprocess.Popen(
        command, cwd=folder, env={**kept, **job, **path}, stdout=output, stderr=subprocess.STDOUT
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


def test_time_limit_leaves_a_checkpoint_and_a_requeued_job(tmp_path):
    job = start(tmp_path, "--training.total-steps", "100000")
    deadline = time.monotonic() + 300
    while steps_logged(tmp_path) < 3 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    said = end_of(job, tmp_path)
    assert job.returncode == 143 and "job 77 is requeued" in said, said[-3000:]
    assert (tmp_path / "calls").read_text() == "scancel --signal=TERM 77\nscontrol requeue 77\n"
    checkpoints = tmp_path / "runs" / "flava_debug" / "checkpoints"
    saved = int((checkpoints / "latest").read_text().split()[0].removeprefix("step_"))
    assert saved == steps_logged(tmp_path) >= 3, (
        "the checkpoint is that of the last step, not one that every_steps wrote"
    )


def test_failure_is_not_requeued(tmp_path):
    job = start(tmp_path, "--codebook-weights", "gone")
    said = end_of(job, tmp_path)
    assert job.returncode not in (0, None) and "gone" in said and not (tmp_path / "calls").exists(), said[
        -3000:
    ]
