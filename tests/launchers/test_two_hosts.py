"""A run on two hosts is the run on one: the deepspeed launcher with a hostfile, over ssh, with gloo over the link between them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pretend_hosts import ADDRESSES, LINK, Host, missing, two_hosts

from flava_ds.training.checkpoint_reader import load_weights

ROOT = Path(__file__).parents[2]
OVERRIDES = ["--training.total-steps", "6", "--schedule.warmup-steps", "2", "--checkpoint.every-steps", "0", "--logging.no-tensorboard"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
TIMEOUT_S = 600
"""Not a measure of speed: a run takes some 15 s on two idle cores."""

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    """Returns step, losses, accuracies and gradient norm of every step of a run."""
    lines = [json.loads(line) for line in (folder / "runs" / name / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key in ("step", "grad_norm") or key.startswith(("loss/", "accuracy/"))} for line in lines[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that the hosts share, with the run of two ranks on one host in it."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", "--ranks", "2", "--name", "one_host", *OVERRIDES]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def hosts(folder) -> Iterator[list[Host]]:
    """Two hosts, for all tests of this module."""
    (folder / "net").mkdir()
    with two_hosts(folder / "net") as hosts:
        yield hosts


@pytest.mark.parametrize(("launcher", "program"), [("pdsh", "pdsh=pdsh"), ("openmpi", "mpirun=openmpi-bin")])
def test_two_hosts_have_the_curve_of_one(folder, hosts, launcher, program, monkeypatch):
    if reason := missing(program):
        pytest.skip(reason)
    monkeypatch.chdir(folder)
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in ADDRESSES))
    settings = {"HOSTFILE": "hostfile", "LAUNCHER": launcher, "INTERFACE": LINK, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    before = [host.bytes_sent() for host in hosts]
    command = ["bash", str(ROOT / "launchers" / "deepspeed.sh"), "flava_debug", "--name", f"two hosts, {launcher}", *OVERRIDES]
    done = hosts[0].run(*command, env={**ENVIRONMENT, **settings}, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    expected = curve(folder, "one_host")
    assert len(expected) == 6 and {"loss/global_contrastive", "loss/itm"} <= {key for line in expected for key in line}
    assert curve(folder, f"two hosts, {launcher}") == expected, "the same arithmetic in the same order, so the same bits"
    sent = [host.bytes_sent() - was for host, was in zip(hosts, before, strict=True)]
    assert min(sent) > 6 * gradient_bytes(folder, launcher), "gradients have to cross the link in both directions at every step"


def gradient_bytes(folder: Path, launcher: str) -> int:
    """Returns the bytes of the smallest step's gradients, a lower bound: those of the text encoder's matrices in fp32."""
    weights = load_weights(folder / "runs" / f"two hosts, {launcher}")
    sizes = [tensor.numel() * 4 for name, tensor in weights.items() if "text_encoder.transformer" in name]
    assert sizes
    return sum(sizes)
