"""benchmarks/gpu_suite.sh: its parts, its memory of what has finished, its table; for real, on the CPU."""

import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from flava_kernels import OPS
from flava_kernels.bench import peers

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "benchmarks" / "gpu_suite.sh"


def suite(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the suite with this interpreter."""
    command = ["bash", SUITE, "--out", out, "--python", sys.executable, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)


def table(done: subprocess.CompletedProcess) -> dict[str, str]:
    """Reads the table at the end."""
    lines = done.stdout.split("\npart ")[1].splitlines()[1:]
    return dict(line.split(maxsplit=1) for line in lines)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run(["shellcheck", SUITE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_parts(tmp_path):
    done = suite(tmp_path, "--dry-run")
    parts = [line.split(":")[0] for line in done.stdout.splitlines()]
    first = ["varlen_attention", "layer_norm", "add_layer_norm", "linear_gelu"]
    ordered = [*first, *(op for op in OPS if op not in first)]
    both = [f"{what}-{op}" for op in ordered for what in ("check", "bench")]
    both.insert(2 * len(first), "compiled-64")
    for op in ("info_nce", "sigmoid_loss"):
        both.insert(both.index(f"bench-{op}") + 1, f"bench-{op}-fp32")
    trained = ["smoke", "kernels-train", "train", *(f"pairs-{size}" for size in (64, 256, 128))]
    assert parts == [*trained, *both, "others", "apex", "memcheck", "racecheck"]
    said = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert "--recipe flava_base --batch 128 --kind pair" in said["pairs-128"]
    assert said["compiled-64"].endswith("--training.compile-codebook --training.pad-to-multiple-of 256")
    assert f"--like {tmp_path}/pairs-64" in said["compiled-64"]
    assert "--op info_nce --dtype fp32" in said["bench-info_nce-fp32"]
    assert "test_trainer_on_kernels.py" in said["kernels-train"]
    assert "--tool racecheck" in said["racecheck"]
    assert "test_bench_measure.py" in said["others"] and "test_op.py" not in said["others"]
    assert "test_trainer_on_kernels.py" not in said["others"]
    words = re.search(r"\((.*)\)", said["smoke"])[1].split(" or ")
    for op in OPS.values():
        cases = [f"[{op.name}-{case.name}-" for case in op.cases()]
        assert any(word in case for case in cases for word in words), f"no case of {op.name} is in smoke"
    assert list(tmp_path.iterdir()) == []


def test_parts_made_of_tests_have_some_on_a_cpu_too(tmp_path):
    """pytest fails where it finds none."""
    done = suite(tmp_path, "--cpu", "--only", "[ksoa]*", PYTEST_ADDOPTS="--collect-only -q")
    assert done.returncode == 0, done.stdout
    assert set(table(done)) == {"kernels-train", "smoke", "others", "apex"}


def wheel(folder: Path, name: str, requires: str = "") -> None:
    """Writes a wheel with one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            + (f"Requires-Dist: {requires}\n" if requires else ""),
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def bare(tmp_path) -> Path:
    """An interpreter of its own that has pip and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    return tmp_path / "bare" / "bin" / "python"


@pytest.mark.slow
def test_wheels_are_installed_one_by_one_without_what_they_depend_on(tmp_path, bare):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "first", requires="something-that-is-not-carried")
    wheel(wheels, "second")
    (wheels / "broken-1.0-py3-none-any.whl").write_text("no archive")
    command = ["bash", SUITE, "--out", tmp_path / "out", "--python", bare, "--cpu", "--wheels", wheels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "error: broken-1.0-py3-none-any.whl does not install" in done.stderr
    assert subprocess.run([bare, "-c", "import first, second"]).returncode == 0


def test_wheels_are_collected_with_all_that_the_other_machine_lacks(tmp_path, monkeypatch):
    """pip finds wheels in a folder here, without an index."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from collect_wheels import collect

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    (tmp_path / "out").mkdir()
    needs = (
        "second[more]>=1",
        "torch",
        "nvidia-cublas-cu13",
        "absent; sys_platform == 'win32'",
        "absent; python_version < '3.12'",
    )
    wheel(tmp_path / "index", "first", "\nRequires-Dist: ".join(needs))
    wheel(tmp_path / "index", "second", "third; extra == 'more'\nRequires-Dist: absent; extra == 'other'")
    wheel(tmp_path / "index", "third", "first")
    missing = collect(tmp_path / "out", ["first", "nowhere"], {"torch"}, "3.12")
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "out").iterdir()) == [
        "first",
        "second",
        "third",
    ]
    assert list(missing) == ["nowhere"] and "nowhere" in missing["nowhere"]


@pytest.mark.skipif(
    not any(map(importlib.util.find_spec, ("setuptools.command.bdist_wheel", "wheel"))),
    reason="setuptools is older than 70.1 and cannot build wheels",
)
def test_the_wheel_of_a_folder_leaves_nothing_in_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from collect_wheels import fetch

    project = tmp_path / "project"
    (project / "own").mkdir(parents=True)
    (project / "own" / "__init__.py").touch()
    (project / "setup.py").write_text("from setuptools import setup; setup(name='own', packages=['own'])")
    (project / "build" / "lib" / "own").mkdir(parents=True)
    (project / "build" / "lib" / "own" / "stale.py").touch()
    before = sorted(project.rglob("*"))
    (tmp_path / "out").mkdir()
    assert fetch(tmp_path / "out", str(project), "3.12", build=True) is None
    assert sorted(project.rglob("*")) == before
    (made,) = (tmp_path / "out").iterdir()
    with zipfile.ZipFile(made) as archive:
        assert [name for name in archive.namelist() if name.endswith(".py")] == ["own/__init__.py"]


def test_every_peer_that_is_no_part_of_torch_is_carried_or_named(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from collect_wheels import NOT_CARRIED, WANTED

    asked = set()

    def library(name: str, **_: object) -> None:
        asked.add(name.partition(".")[0].replace("_", "-"))
        raise peers.UnavailableError

    monkeypatch.setattr(peers, "library", library)
    for op, some in peers.PEERS.items():
        for peer in some:
            with contextlib.suppress(peers.UnavailableError):
                peer.build(OPS[op], "cuda")
    assert {"flash-attn", "inf-cl", "torch"} <= asked
    assert asked - {"torch"} <= {*WANTED, *NOT_CARRIED}


def test_a_folder_of_wheels_has_to_exist(tmp_path):
    missing = suite(tmp_path, "--dry-run", "--wheels", str(tmp_path / "none"))
    assert missing.returncode == 2 and "is no folder" in missing.stderr


def test_without_pytest_it_says_so(tmp_path):
    blind = tmp_path / "python"
    blind.write_text(
        f'#!/bin/sh\ncase "$*" in *"import pytest"*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'
    )
    blind.chmod(0o755)
    done = suite(tmp_path, "--cpu", "--python", str(blind))
    assert done.returncode == 2 and "has no pytest" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus"], "'--gpus' is not an option"),
        (["--only"], "--only needs a value"),
        (["--minutes", "nine"], "--minutes takes a whole number, not 'nine'"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    done = suite(tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_without_a_gpu_it_says_so(tmp_path):
    done = suite(tmp_path)
    assert done.returncode == 2 and "torch finds no GPU; --cpu runs without" in done.stderr


@pytest.mark.slow
def test_what_has_finished_is_skipped_and_what_has_failed_is_not(tmp_path):
    broken = suite(tmp_path, "--cpu", "--only", "check-pack", PYTEST_ADDOPTS="--no-such-option")
    assert broken.returncode == 1 and table(broken)["check-pack"].startswith("failed:")
    packed = ("--cpu", "--only", "*-pack", "--archive", str(tmp_path / "all.tgz"))
    first = suite(tmp_path, *packed, FLAVA_COMMIT="one")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "finished before" not in first.stdout
    assert set(table(first)) == {"check-pack", "bench-pack", "packed:"}
    assert " passed" in table(first)["check-pack"] and "rows added" in table(first)["bench-pack"]
    assert {path.name for path in tmp_path.iterdir()} == {"cpu", "all.tgz"}, "each device has its folder"
    shutil.rmtree(tmp_path / "cpu")  # a fresh machine, to which only the archive came along
    again = suite(tmp_path, *packed, FLAVA_COMMIT="two")
    assert again.stdout.count("finished before") == 2
    of_one = {name: f"{result} (of commit one)" for name, result in table(first).items() if name != "packed:"}
    assert table(again) == {**of_one, "packed:": str(tmp_path / "all.tgz")}


def test_when_the_minutes_are_over_the_rest_waits_and_what_there_is_is_packed(tmp_path):
    done = suite(tmp_path, "--cpu", "--minutes", "0", "--archive", str(tmp_path / "all.tgz"))
    assert done.returncode == 1 and "==" not in done.stdout.split("part ")[0]
    found = table(done)
    found.pop("packed:")
    assert len(found) == 2 * len(OPS) + 13
    assert all(result.startswith("waits: the 0 minutes are over") for result in found.values())
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert archive.getnames() == ["cpu", "cpu/table.txt"]


def test_the_archive_of_another_device_stays_as_it_is(tmp_path):
    (tmp_path / "nvidia-h100").mkdir()
    with tarfile.open(tmp_path / "all.tgz", "w:gz") as archive:
        archive.add(tmp_path / "nvidia-h100", "nvidia-h100")
    before = (tmp_path / "all.tgz").read_bytes()
    done = suite(tmp_path, "--cpu", "--minutes", "0", "--archive", str(tmp_path / "all.tgz"))
    assert done.returncode == 2 and "has the results of 'nvidia-h100', and this is 'cpu'" in done.stderr
    assert (tmp_path / "all.tgz").read_bytes() == before


def test_steps_unlike_those_of_another_run_and_what_is_compiled_late_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import train_steps

    steps = [{"step": step, "kind": "pair", "loss/mim": 4.0, "time": 1e9 + step} for step in range(5)]
    assert train_steps.unlike(steps, steps) == []
    assert train_steps.unlike(steps[:4], steps) == ["4 steps are not the other run's 5, of the same kinds"]
    others = [*steps[:3], steps[3] | {"loss/mim": 4.05}, steps[4] | {"loss/mim": float("nan")}]
    assert train_steps.unlike(steps, others) == [
        "step 3: loss/mim is 4.0000, not 4.0500",
        "step 4: loss/mim is 4.0000, not nan",
    ]
    said = ""
    for seconds in (1.9, 2.1):
        when = datetime.datetime.fromtimestamp(1e9 + seconds).strftime("%m%d %H:%M:%S.%f")
        said += (
            f"[rank0]:V{when} 6900 torch/_dynamo/guards.py:5396] [1/1] [__recompiles] Recompiling function "
            f"forward{seconds} in /flava_ds/layers/transformer.py:90\n[rank0]:V{when} ...  triggered by the "
            "following guard failure(s):\n"
        )
    assert train_steps.compiled_again(said, steps) == ["forward2.1 was compiled again after 3 steps"]


@pytest.mark.slow
def test_the_training_steps(tmp_path):
    done = suite(tmp_path, "--cpu", "--only", "train")
    assert done.returncode == 0, done.stdout
    summary = json.loads((tmp_path / "cpu" / "train" / "train_steps.json").read_text())
    assert set(summary["kinds"]) == {"pair", "image", "text"}
    for found in summary["kinds"].values():
        assert found["steps"] > 0 and found["seconds_per_step"] > 0 and 0 < found["mfu"] < 1
    assert "% of GEMM" in table(done)["train"]
