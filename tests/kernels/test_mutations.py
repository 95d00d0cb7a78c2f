"""Every bug planted in a kernel is noticed by the cases of its operator."""

import json
import subprocess
import sys
from pathlib import Path

import flava_kernels
import mutants
import pytest

RUNNER = Path(__file__).with_name("mutation_run.py")
KERNELS = Path(flava_kernels.__file__).parent / "triton_ops"


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("module", mutants.MUTANTS)
def test_every_mutant_dies(module, tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", RUNNER, module, tmp_path], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    wrong = {name: outcome for name, outcome in outcomes.items() if outcome not in (("survived",) if name.startswith("unchanged") else ("caught", "crashed"))}
    assert not wrong, f"{wrong}\n{done.stderr}"


def test_every_module_with_kernels_has_mutants():
    with_kernels = {path.stem for path in KERNELS.glob("*.py") if "\n@triton.jit" in path.read_text(encoding="utf-8")}
    assert set(mutants.MUTANTS) == with_kernels


@pytest.mark.parametrize("module", mutants.MUTANTS)
def test_every_mutant_still_finds_its_text(module):
    source = (KERNELS / f"{module}.py").read_text(encoding="utf-8")
    lost = [mutant.name for mutant in mutants.MUTANTS[module] for text, _ in mutant.edits if source.count(text) != mutant.times]
    assert not lost
