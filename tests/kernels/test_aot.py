"""Every shipped configuration compiles for four GPUs with two versions of Triton, within its budget."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton_36
from flava_kernels import OPS, aot

CACHE = Path(sys.prefix) / "triton-cache"
"""Compiled kernels by their source: only what has changed is compiled again."""


def check(environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs the command as a developer does."""
    environment = {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(CACHE)}
    return subprocess.run([sys.executable, "-m", "flava_kernels.aot", "--check"], capture_output=True, text=True, timeout=900, env=environment)


@pytest.mark.aot
def test_every_configuration_keeps_its_budget():
    done = check(dict(os.environ))
    assert done.returncode == 0, done.stderr


@pytest.mark.aot
def test_every_configuration_keeps_its_budget_with_the_oldest_triton():
    done = check(triton_36.environment())
    assert done.returncode == 0, done.stderr
    assert "| 3.6 |" in done.stdout


@pytest.mark.aot
def test_every_operator_lists_its_kernels_for_every_architecture():
    found = {(module, launch.arch) for module, launch in aot.launches()}
    assert found == {(op.kernels, arch) for op in OPS.values() for arch in aot.roofline.MACHINES}


@pytest.mark.parametrize(
    ("measured", "fault"),
    [
        ((800, 2, 0, 0, ["bf16"]), "800 columns of tensor memory"),
        ((0, 0, 0, 8, ["bf16"]), "no block fits"),
        ((0, 2, 3, 8, ["bf16"]), "3 atomic operations"),
        ((0, 2, 0, 0, ["f32", "f16"]), "without a matrix instruction"),
    ],
)
def test_a_useless_binary_has_a_fault(measured, fault):
    assert fault in "; ".join(aot._faults(*measured))


@pytest.mark.parametrize("measured", [(512, 1, 0, 8, ["bf16"]), (0, 1, 0, 0, ["f32"]), (0, 1, 0, 0, [])])
def test_a_sound_binary_has_none(measured):
    assert not list(aot._faults(*measured))
