"""Commands that are run in a folder of downloaded data: nothing in it is executed because it has the name of
a module.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flava_ds.ranks import launch, safe_path

SETTINGS = [
    "--training.total-steps",
    "1",
    "--schedule.warmup-steps",
    "1",
    "--checkpoint.every-steps",
    "0",
    "--logging.no-tensorboard",
]
COMMAND = [sys.executable, "-P", "-m", "flava_ds.cli"]
"""What the installed script is: its own folder, not the working directory, comes first."""
PACKAGES = {
    "sitecustomize",
    "usercustomize",
    "flava_ds",
    "flava_kernels",
    "torch",
    "numpy",
    "PIL",
    "deepspeed",
    "safetensors",
    "triton",
    "pkg_resources",
}


def environment() -> dict[str, str]:
    """Returns this process's environment without what an earlier test or a user has set about the path;
    PYTHONPATH without the working directory.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONSAFEPATH", "RANK", "WORLD_SIZE")
    }
    kept["PYTHONPATH"] = os.pathsep.join(
        entry for entry in kept.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)
    )
    return {**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def mine(folder: Path) -> Path:
    """Fills a folder with a file for each module that Python or a package of ours may import; returns where
    those that run leave their names.
    """
    ran = folder.parent / "ran"
    ran.mkdir()
    folder.mkdir()
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    for name in {*sys.stdlib_module_names, *installed, *PACKAGES}:
        (folder / f"{name}.py").write_text(
            f"import posix\nposix.close(posix.open({str(ran / name)!r}, posix.O_CREAT | posix.O_WRONLY))\n"
        )
    return ran


@pytest.mark.distributed
@pytest.mark.slow
def test_training_on_two_ranks_runs_no_file_of_the_working_directory(tmp_path):
    """Through the deepspeed launcher, with loader processes."""
    ran = mine(tmp_path / "downloaded")
    command = [*COMMAND, "train", "flava_debug", "--ranks", "2", *SETTINGS, "--data.num-workers", "1"]
    done = subprocess.run(
        command, cwd=tmp_path / "downloaded", env=environment(), capture_output=True, text=True, timeout=300
    )
    assert [path.name for path in ran.iterdir()] == []
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "downloaded" / "runs" / "flava_debug" / "checkpoints" / "step_00000001").is_dir()


def test_the_traps_of_these_tests_work(tmp_path):
    ran = mine(tmp_path / "downloaded")
    (tmp_path / "downloaded" / "begin.py").write_text("import torch\n")
    subprocess.run([sys.executable, "begin.py"], cwd=tmp_path / "downloaded", env=environment(), check=True)
    assert "torch" in [path.name for path in ran.iterdir()]


@pytest.mark.parametrize("plan", [launch.plan_launch, launch.plan_supervised])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_launch_carries_the_safe_path(plan, ranks):
    restarts = {"restarts": 1} if plan is launch.plan_supervised else {}
    assert (
        plan("demo", [], ranks=ranks, gpus=0, **restarts).environment.items()
        >= {"PYTHONSAFEPATH": "1"}.items()
    )


def test_a_rank_that_a_user_starts_by_its_module_imports_no_torch_of_the_working_directory(tmp_path):
    """What `torchrun --module` does, too; the standard library is imported before this package can act."""
    (tmp_path / "torch.py").write_text("open('ran', 'w')\n")
    done = subprocess.run(
        [sys.executable, "-m", "flava_ds.train", "demo", "--name", ""],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "error:" in done.stderr and not (tmp_path / "ran").exists(), done.stderr


def test_processes_that_a_command_starts_are_told(tmp_path):
    """Loader processes and the server that they are forked from begin with `python -c`."""
    (tmp_path / "signal.py").write_text("open('ran', 'w')\n")
    code = (
        "import sys, multiprocessing; from flava_ds import cli; sys.argv[1:] = ['config', 'flava_debug']; "
        "cli.main(); "
        "p = multiprocessing.get_context('spawn').Process(target=print); p.start(); p.join(); "
        "sys.exit(p.exitcode)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and not (tmp_path / "ran").exists(), done.stderr


def test_a_checkout_that_is_the_working_directory_stays_importable(monkeypatch):
    checkout = str(Path(safe_path.__file__).parents[2])
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "path", [checkout, *sys.path])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    safe_path.leave_out_working_directory()
    assert sys.path[0] == checkout and os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("words", ["flava_ds.cli config flava_debug", "flava_ds.train flava_debug"])
def test_a_working_directory_that_was_deleted_is_one_line(tmp_path, words):
    """That of a job whose scratch folder was cleared."""
    line = f"mkdir gone && cd gone && rmdir ../gone && exec '{sys.executable}' -P -m {words}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    said = "error: the working directory has been deleted; change to another one\n"
    assert (done.stderr, done.stdout, done.returncode) == (said, "", 2)
