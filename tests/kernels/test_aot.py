"""Every shipped configuration compiles for four GPUs with two versions of Triton, within its budget.

Those whose rows in kernels/aot.csv carry the hash of what they are made from count as compiled, but for a few
that the commit draws.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import rotation
import triton_36
from flava_kernels import OPS, aot, aot_budget, aot_row, aot_table

CACHE = Path(sys.prefix) / "triton-cache"
"""Compiled kernels by their source: only what has changed is compiled again."""


def check(environment: dict[str, str], full: bool) -> str:
    """Runs the command as a developer does, asserts that it is content, and returns its output."""
    environment = {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(CACHE)
    }
    flags = ["--full"] if full else ["--sample", rotation.commit()]
    command = [sys.executable, "-m", "flava_kernels.aot", "--check", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment)
    assert done.returncode == 0, done.stderr
    summary = done.stdout.splitlines()[-1]
    if not summary.endswith("; 0 had none"):
        warnings.warn(f"make kernels would spare the next run some time; {summary}", stacklevel=1)
    return done.stdout


@pytest.mark.aot
def test_every_configuration_keeps_its_budget(full):
    check(dict(os.environ), full)


@pytest.mark.aot
def test_every_configuration_keeps_its_budget_with_the_oldest_triton(full):
    assert "| 3.6 |" in check(triton_36.environment(), full)


@pytest.mark.aot
def test_every_operator_lists_its_kernels_for_every_architecture():
    found = {(module, launch.arch) for module, launch in aot.launches()}
    assert found == {(op.kernels, arch) for op in OPS.values() for arch in aot.roofline.MACHINES}


@pytest.mark.aot
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_layer_norm_divides_and_takes_roots_exactly(arch):
    """The interpreter cannot tell: its quotients and roots are always exact."""
    import triton
    from flava_kernels.triton_ops import compiling, layer_norm

    (launch,) = [
        x for x in layer_norm.launches() if (x.arch, x.name) == (arch, "add_layer_norm.forward.fp32.768")
    ]
    source = triton.compiler.ASTSource(
        launch.kernel, compiling._signature(launch), constexprs=dict(launch.constexprs)
    )
    ptx = triton.compile(source, target=compiling._target(arch), options={"num_warps": 8}).asm["ptx"]
    assert "sqrt.rn.f32" in ptx and "div.rn.f32" in ptx
    assert "sqrt.approx" not in ptx and "div.full" not in ptx and "rcp.approx" not in ptx


@pytest.mark.parametrize("action", ["--check", "--update"])
def test_an_installed_package_has_no_budget_and_says_so_before_it_compiles(monkeypatch, tmp_path, action):
    for module in (aot_budget, aot_table):
        monkeypatch.setattr(module, "PATH", tmp_path / "absent")
    with pytest.raises(SystemExit, match="no such file; a clone of the repository has it"):
        aot.main([action, "--op", "pack"])
    assert not list(tmp_path.iterdir())


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
    assert fault in "; ".join(aot_row.faults(*measured))


@pytest.mark.parametrize("measured", [(512, 1, 0, 8, ["bf16"]), (0, 1, 0, 0, ["f32"]), (0, 1, 0, 0, [])])
def test_a_sound_binary_has_none(measured):
    assert not list(aot_row.faults(*measured))
