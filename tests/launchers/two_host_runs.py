"""The debug recipe on one host with two ranks, and on two hosts with one rank each: started as a user would,
and what they logged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pretend_hosts import LINK, Host

from flava_ds.checkpoints.reader import load_weights

ROOT = Path(__file__).parents[2]
STEPS = 6
OVERRIDES = [
    "--training.total-steps",
    str(STEPS),
    "--schedule.warmup-steps",
    "2",
    "--checkpoint.every-steps",
    "0",
    "--logging.no-tensorboard",
]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
TIMEOUT_S = 600
"""Not a measure of speed: a run takes some 15 s on two idle cores."""
ONE_HOST = "one_host"
LAUNCHERS = {"pdsh": "pdsh=pdsh", "openmpi": "mpirun=openmpi-bin"}
"""What starts the ranks of the other host, and the program and Debian package that it needs."""

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class TwoHostRun:
    """A run on both hosts: its command, what it printed, its curve, and the bytes that left each host
    meanwhile.
    """

    command: list[str]
    printed: str
    curve: Curve
    sent: list[int]
    gradient_bytes: int
    """Of the smallest step, a lower bound: the text encoder's matrices in fp32."""


def train_on_one_host(folder: Path, name: str, overrides: list[str]) -> Curve:
    """Trains on two ranks of this host, in `folder`; returns the curve."""
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", "--ranks", "2"]
    done = subprocess.run(
        [*command, "--name", name, *overrides],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    _succeed(done)
    return curve(folder, name)


def run_on_two_hosts(folder: Path, hosts: list[Host], launcher: str) -> TwoHostRun:
    """Trains on one rank of each host through the deepspeed launcher, in `folder`, which has to be the
    working directory.
    """
    name = f"two hosts, {launcher}"
    before = [host.bytes_sent() for host in hosts]
    command, done = train_on_hosts(folder, hosts, launcher, name, OVERRIDES)
    sent = [host.bytes_sent() - was for host, was in zip(hosts, before, strict=True)]
    weights = load_weights(folder / "runs" / name)
    matrices = [
        tensor.numel() * 4 for parameter, tensor in weights.items() if "text_encoder.transformer" in parameter
    ]
    return TwoHostRun(command, done.stdout + done.stderr, curve(folder, name), sent, sum(matrices))


def train_on_hosts(
    folder: Path, hosts: list[Host], launcher: str, name: str, overrides: list[str]
) -> tuple[list[str], subprocess.CompletedProcess]:
    """Trains on one rank of each host, the first of which is rank 0 and launches; returns the command as it
    is shown, and what became of it.
    """
    lines = "".join(f"{host.name} slots=1\n" for host in hosts)
    hosts[0].run("tee", "hostfile", folder=folder, input=lines, check=True)
    settings = {"HOSTFILE": "hostfile", "LAUNCHER": launcher, "INTERFACE": LINK}
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["launchers/deepspeed.sh", "flava_debug", "--name", name, *overrides]
    environment = {**ENVIRONMENT, **settings, **as_root}
    script = ["bash", str(ROOT / command[0])]
    done = hosts[0].run(*script, *command[1:], folder=folder, env=environment, timeout=TIMEOUT_S)
    return [*(f"{variable}={value}" for variable, value in settings.items()), *command], _succeed(done)


def curve(folder: Path, name: str) -> Curve:
    """Returns step, losses, accuracies and gradient norm of every step of a run."""
    lines = [json.loads(line) for line in (folder / "runs" / name / "log.jsonl").read_text().splitlines()]
    return [
        {
            key: value
            for key, value in line.items()
            if key in ("step", "grad_norm") or key.startswith(("loss/", "accuracy/"))
        }
        for line in lines[1:]
    ]


def _succeed(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done
