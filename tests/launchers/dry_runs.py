"""Calls of the launchers with --dry-run, and a hostfile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launchers"
STARTED = ["torchrun.sh", "deepspeed.sh", "slurm.sbatch", "kubernetes.sh"]
SETTINGS = (
    "RANKS RESTARTS NODES HEAD PORT HOSTFILE LAUNCHER INTERFACE KIND IMAGE CLAIM NAME GPUS GRACE "
    "OMP_NUM_THREADS PDSH_SSH_ARGS_APPEND"
).split()


def dry_run(script: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a launcher with --dry-run, without the variables of a surrounding job."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "NCCL_", "GLOO_")) and name not in SETTINGS
    }
    command = ["bash", str(FOLDER / script), "--dry-run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**kept, **variables})


def printed(script: str, *words: str, **variables: str) -> str:
    """Returns what a successful dry run prints."""
    done = dry_run(script, *words, **variables)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.removesuffix("\n")


def refused(script: str, *words: str, **variables: str) -> str:
    """Returns the one line of a dry run that ends with a usage error and prints no command."""
    done = dry_run(script, *words, **variables)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr


def hostfile(folder: Path, *lines: str) -> Path:
    """Writes a hostfile."""
    path = folder / "hosts"
    path.write_text("\n".join(lines or ("# ours", "node1 slots=8", "node2 slots=8")) + "\n")
    return path
