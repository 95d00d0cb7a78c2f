"""Training on a device that is as strict as a GPU (tests/pretend_gpu.py): no tensor of the CPU in its
operations, and no wait of the host but those that the pages name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import steps_of

from flava_ds.config.family import BUILT_IN

SCRIPT = Path(__file__).with_name("pretend_gpu_runs.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FAMILIES = ["flava_debug", *(f"demo_{family}" for family in BUILT_IN if family != "flava")]
MATCHING = {
    ("demo_unit", "detection"): {"_to_copy objectives/set_matching.py"},
    ("demo_albef", "pair"): {"_to_copy objectives/hard_matching.py"},
}
"""Where a step waits, by recipe and source."""
STEPS = 8
RECORDED, SAVED = 4, 8
OF_A_RECORD = {"_to_copy watching/metrics.py", "_local_scalar_dense watching/spikes.py"}
OFFLOADED = {f"{operation} training/engine.py" for operation in ("_to_copy", "copy_", "_local_scalar_dense")}
"""The update is the host's. Not in the optimizer: torch's would not wait for what it copies there."""

pytestmark = pytest.mark.slow


def run(*words: str, ranks: int = 0, cwd: Path | None = None) -> str:
    """Runs the script, on `ranks` by torchrun if given; returns what it prints."""
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*start, str(SCRIPT), *words]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def curve(folder: Path) -> list[dict[str, float]]:
    shown = ("loss/", "accuracy/", "grad_norm")
    return [{key: x for key, x in line.items() if key.startswith(shown)} for line in steps_of(folder)]


def places(waits: dict[str, int]) -> set[str]:
    return {place.rsplit(":", 1)[0] for place in waits}


STRICT = """
import torch
from pretend_gpu import device, moved, pretend_gpu

device()
with pretend_gpu() as waits:
    there, here = torch.ones(3, device="pretend"), torch.ones(3)
    for refused in (
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: torch.zeros(()).add_(there.sum()),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: there.numpy(),
    ):
        try:
            refused()
        except (RuntimeError, TypeError) as error:
            assert "tensor of the CPU" in str(error) or "numpy" in str(error), error
        else:
            raise AssertionError("taken")
    assert (there + torch.tensor(1.0) + here.to(device())).device == device() and not waits
    there[1:].add_(1)
    assert there.cpu().tolist() == [1.0, 2.0, 2.0] and there.sum().item() == 5 and len(there[there > 1]) == 2
    torch.repeat_interleave(there.long()), torch.bincount(there.long())
    torch.repeat_interleave(there.long(), output_size=5), there.clone()[1]
    assert [place.split()[0] for place in waits] == [
        *("_to_copy", "_local_scalar_dense", "index", "repeat_interleave", "bincount"),
    ], waits
    layer = torch.nn.Linear(3, 2)
    moved(layer)
    layer(there[None]).sum().backward()
    assert layer.weight.grad.device == device() and layer.weight.grad.cpu().tolist() == [[1.0, 2.0, 2.0]] * 2
from flava_ds.processes import leave
leave(0)  # not by the interpreter's exit, at which a thread of autograd aborted the process once (torch 2.15)
"""


def test_the_device_is_strict():
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", STRICT], {**ENVIRONMENT, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.distributed
def test_ranks_have_the_curve_of_a_cpu_and_wait_for_records_and_saves_alone(tmp_path):
    words = f"--training.total-steps {STEPS} --schedule.warmup-steps 2 --checkpoint.every-steps {SAVED}"
    for where in ("cpu", "pretend"):
        options = [*words.split(), "--logging.every-steps", str(RECORDED)]
        run("train", where, "flava_debug", *options, ranks=2, cwd=tmp_path)
    expected, found = (curve(tmp_path / "runs" / where) for where in ("cpu", "pretend"))
    assert len(expected) == STEPS // RECORDED
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    steps = json.loads((tmp_path / "waits.json").read_text())
    for step, waits in enumerate(steps, start=1):
        if step == SAVED:
            assert places(waits) > OF_A_RECORD
        else:
            assert places(waits) == (OF_A_RECORD if step % RECORDED == 0 else set()), step


@pytest.mark.parametrize(
    ("recipe", "options", "waits"),
    [
        ("flava_debug", "--training.precision bf16 --training.activation-checkpointing", set()),
        ("demo_dino", "", set()),
        ("demo_albef", "", {"_to_copy objectives/hard_matching.py"}),
        ("flava_debug", "--engine.deepspeed-config zero1_offload", OFFLOADED),
    ],
)
def test_other_ways_to_train_wait_as_the_pages_say(tmp_path, recipe, options, waits):
    words = "--training.total-steps 3 --schedule.warmup-steps 1 --checkpoint.every-steps 0"
    options = [*words.split(), *options.split(), "--logging.every-steps", "3"]
    run("train", "pretend", recipe, *options, cwd=tmp_path)
    steps = json.loads((tmp_path / "waits.json").read_text())
    assert [places(step) for step in steps[:2]] == [waits, waits]


def test_steps_of_every_family_are_those_of_a_cpu():
    found = [json.loads(line) for line in run("steps", *FAMILIES).splitlines() if line.startswith("{")]
    assert {row["recipe"] for row in found} == set(FAMILIES)
    for row in found:
        assert row["loss"] < 1e-5 and row["gradients"] < 1e-4, row
        assert places(row["waits"]) == MATCHING.get((row["recipe"], row["source"]), set()), row
