"""make and the scripts under it: what they start, and what they say on a machine that lacks something."""

import os
import subprocess
import sys
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def make(*words: str) -> subprocess.CompletedProcess:
    """Runs make in the repository, as from a shell: a make around the tests would lend it its own flags and
    messages.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def fake_python(path: Path, script: str) -> Path:
    """Writes an interpreter that does what the shell script says."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def stub_folder(tmp_path: Path, pytest_script: str) -> Path:
    """Writes a folder with a `python` that stands for pytest."""
    fake_python(tmp_path / "python", pytest_script)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "flava-ds demo --work ten-minutes"),
        (("WORK=hour", "CODEBOOK=train"), "flava-ds demo --work hour --codebook train"),
        (("MINUTES=20", "DEMO_FLAGS=--new"), "flava-ds demo --minutes 20 --new"),
    ],
)
def test_demo_takes_a_work_or_minutes(words, expected):
    line = make("-n", "demo", *words).stdout.splitlines()[-1]
    assert " ".join(line.split()).endswith(expected)


def test_the_demo_installs_no_test_tools_and_shows_what_it_installs():
    plan = make("-n", "--what-if=setup.py", ".venv/.installed-demo").stdout
    assert "--editable '.[demo]'" in plan and "--quiet" not in plan
    wanted = [Requirement(line) for line in requires("flava_ds")]
    demo = {
        requirement.name
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate({"extra": "demo"})
    }
    everything = {requirement.name for requirement in wanted}
    assert {"torch", "deepspeed", "transformers"} <= demo and {
        "pytest",
        "wandb",
        "ruff",
        "hypothesis",
    } <= everything - demo


def test_old_python_is_refused_with_what_to_do(tmp_path):
    python = fake_python(tmp_path / "python", 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac')
    done = make(f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", f"{tmp_path / 'venv'}/.installed")
    assert done.returncode == 2
    assert (
        f"error: {python} is Python 3.9.2, but 3.11 or later is needed; name another one with "
        "PYTHON=python3.12"
    ) in done.stderr
    assert not (tmp_path / "venv").exists()


def test_installing_waits_for_a_change():
    """The stamp depends on setup.py and pyproject.toml alone: newer than both, it is up to date."""
    plan = make("-n", "--what-if=setup.py", ".venv/.installed").stdout
    assert "pip install" in plan and "--index" not in plan
    assert (
        "pip install"
        not in make(
            "-n",
            "--old-file=setup.py",
            "--old-file=pyproject.toml",
            "--assume-old=.venv/.installed",
            ".venv/.installed",
        ).stdout
    )


def test_the_demo_uses_what_the_tests_have_installed(tmp_path):
    """Whichever of the two stamps is there, unless it is older than what it was made for."""
    venv = f"VENV={tmp_path}"
    assert "pip install" in make("-n", "demo", venv).stdout
    (tmp_path / ".installed").touch()
    assert "pip install" not in make("-n", "demo", venv).stdout
    os.utime(tmp_path / ".installed", (1, 1))
    assert "'.[demo]'" in make("-n", "demo", venv).stdout


def test_missing_venv_names_the_package(tmp_path):
    python = fake_python(tmp_path / "python", 'case "$*" in *version_info*) echo 3.11;; *) exit 1;; esac')
    done = subprocess.run(
        ["sh", str(ROOT / ".ci/make_venv"), str(python), str(tmp_path / "venv")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.endswith("run: sudo apt install python3.11-venv\n")


def test_virtual_environment_has_pip(tmp_path):
    subprocess.run(
        ["sh", str(ROOT / ".ci/make_venv"), sys.executable, str(tmp_path / "venv")], check=True, timeout=120
    )
    done = subprocess.run(
        [str(tmp_path / "venv/bin/python"), "-m", "pip", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and str(tmp_path / "venv") in done.stdout


@pytest.mark.parametrize(
    ("main", "triton", "status"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 5, 0), (2, 0, 2)],
    ids=["all pass", "main fails", "triton fails", "no triton test", "interrupted"],
)
def test_groups_of_tests_decide_the_status_and_the_closing_line_is_last(tmp_path, main, triton, status):
    script = (
        f'case "$*" in *"not triton"*) echo "9 passed"; exit {main};; *"-m triton"*) echo "interpreter: '
        f'$TRITON_INTERPRET"; exit {triton};; esac'
    )
    done = subprocess.run(
        ["sh", ".ci/run_tests", str(stub_folder(tmp_path, script)), "-x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == "9 passed"
    assert "interpreter: 1" in done.stdout, "this file names mark.triton, so the group is run"
    assert ("failed in the group(s): triton" in done.stderr) == (triton == 1)


def test_skips_of_all_groups_are_listed_with_their_reasons_before_the_last_lines(tmp_path):
    script = r"""
case "$*" in
*"not triton"*) printf 'SKIPPED [2] tests/hf/test_a.py:12: no network\nSKIPPED [1] tests/b.py: not on AMD\n'
  printf '======= 9 passed, 3 skipped in 2.50s =======\n';;
*"-m triton"*) printf 'SKIPPED [1] tests/kernels/test_c.py:3: no network\n1 passed, 1 skipped in 1.00s\n';;
*"-m aot"*) printf 'a\0b\n7 passed, 1 failed in 1.00s\n'; exit 1;;
*torch*) exit 1;;
esac
"""
    done = subprocess.run(
        ["sh", ".ci/run_tests", str(stub_folder(tmp_path, script))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "failed in the group(s): aot" in done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "== skipped 1: not on AMD (tests/b.py)",
        "== skipped 3: no network (tests/kernels/test_c.py tests/hf/test_a.py)",
        "== all groups: 17 passed, 1 failed, 0 errors, 4 skipped",
        "======= 9 passed, 3 skipped in 2.50s =======",
    ]


@pytest.mark.parametrize(
    ("xdist", "jobs", "flags"),
    [(0, "3", "-n 3 --dist loadfile --no-loadscope-reorder"), (0, "1", ""), (1, "2", "")],
    ids=["three", "one", "not installed"],
)
def test_processes_share_the_files_of_a_group(tmp_path, xdist, jobs, flags):
    script = (
        f'case "$*" in *"import xdist"*) exit {xdist};; *"import sys, torch"*) exit 1;; *) echo "run with '
        '$*"; echo "1 passed";; esac'
    )
    folder = stub_folder(tmp_path, script)
    command = ["sh", ".ci/run_tests", str(folder), "--full"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ | {"TEST_JOBS": jobs}
    )
    runs = [line for line in done.stdout.splitlines() if line.startswith("run with -m pytest")]
    assert len(runs) == 3 and all(line.endswith("--full") for line in runs)
    assert [line.count(flags) if flags else line.count("-n ") for line in runs] == (
        [1, 1, 1] if flags else [0, 0, 0]
    )
    assert ("pytest-xdist is not installed" in done.stdout) == bool(xdist)


@pytest.mark.parametrize(
    ("types", "tests", "demo"),
    [(0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 4)],
    ids=["all pass", "a type is wrong", "a test fails", "the demo fails"],
)
def test_continuous_integration_checks_types_and_runs_the_tests_and_then_a_short_demo(
    tmp_path, types, tests, demo
):
    calls = tmp_path / "calls"
    tested = f'echo "5 passed, 1 skipped in 2.50s"; exit {tests}'
    fake_python(
        tmp_path / "make",
        (
            f'echo "$@" >>{calls}\ncase "$1" in .venv/.installed) ;; types) echo "a type"; exit {types} ;; '
            f'test) {tested} ;; *) echo "a table"; exit {demo} ;; esac'
        ),
    )
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(ROOT / ".ci/run")], env={**os.environ, **path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (types or tests or demo), done.stderr
    installed, *both = calls.read_text().splitlines()
    assert installed == ".venv/.installed" and sorted(both[:2]) == ["test", "types"], "both at once, after it"
    assert both[2:] == ([] if types or tests else ["demo WORK=two-minutes"]) and "a type\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "5 passed, 1 skipped in 2.50s"


def test_bounds_are_lower_ones_that_admit_the_oldest_and_the_newest_torch():
    """torch 2.11 comes with triton 3.6, and torch 2.13 with triton 3.9."""
    needed = [Requirement(line) for line in requires("flava_ds")]
    assert {"hf", "eval", "demo", "dev"} <= set(metadata("flava_ds").get_all("Provides-Extra"))
    assert {clause.operator for requirement in needed for clause in requirement.specifier} == {">="}
    for name, admitted, too_old in (
        ("torch", ("2.11.0", "2.13.0"), "2.10.0"),
        ("triton", ("3.6.0", "3.9.0"), "3.5.1"),
    ):
        (found,) = [requirement.specifier for requirement in needed if requirement.name == name]
        assert all(version in found for version in admitted) and too_old not in found, name


def test_a_wheel_has_every_file_of_both_packages():
    """Also those that no module is, e.g. vocabularies, the demo's data and the marks that types are there."""
    script = (
        "import setuptools; from distutils.core import run_setup; "
        "command = run_setup('setup.py', stop_after='init').get_command_obj('build_py'); "
        "command.build_lib = ''; command.ensure_finalized(); "
        "print(*command.get_outputs(include_bytecode=False), sep=chr(10))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    packed = set(done.stdout.splitlines())
    homes = {
        "flava_ds": "flava_ds",
        "flava_ds/ds_configs": "ds_configs",
        "flava_kernels": "kernels/flava_kernels",
    }
    expected = {
        f"{package}/{path.relative_to(ROOT / home)}"
        for package, home in homes.items()
        for path in (ROOT / home).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - packed == {"flava_ds/ds_configs/README.md"}
    assert {"flava_ds/py.typed", "flava_kernels/py.typed"} <= packed
