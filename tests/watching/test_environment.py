"""What a run notes about where it runs."""

import dataclasses
import hashlib
import json
import os
import socket
import subprocess

import flava_kernels
import pytest
import torch
from flava_kernels.bench.machine import device_name, version_of
from test_metrics import speak_while
from toy import toy_config

from flava_ds import config as configuration
from flava_ds.errors import DesyncError
from flava_ds.ranks.distributed import start
from flava_ds.watching import environment


def described() -> dict:
    os.environ.update(FLAVA_KERNELS="torch", A_SECRET_TOKEN="s3cret")
    return environment.describe_start(toy_config(), start(30), 2e9)


@pytest.mark.distributed
def test_a_start_names_versions_machines_kernels_and_source(run_ranks):
    first, second = run_ranks(described, 2)
    assert (
        first["hosts"]
        == {socket.gethostname(): {"ranks": [0, 1], "devices": [device_name(torch.device("cpu"))]}}
        == second["hosts"]
    )
    assert (
        first["versions"]["torch"] == torch.__version__ and first["hardware"]["gemm_flops_per_second"] == 2e9
    )
    assert 0.1 < first["hardware"]["host_memory_gib"] < 1e5 and first["hardware"]["device"] == device_name(
        torch.device("cpu")
    )
    assert first["kernels"] == {name: "torch: FLAVA_KERNELS=torch" for name in flava_kernels.OPS}
    assert first["environment"]["FLAVA_KERNELS"] == "torch" and "s3cret" not in json.dumps(first), (
        "only variables that decide how a run runs"
    )
    plain = json.dumps(first["config"], sort_keys=True)
    assert configuration.from_dict(configuration.Config, first["config"]) == toy_config()
    assert first["config_sha256"] == hashlib.sha256(plain.encode()).hexdigest()


def started_differently(what: str) -> tuple[str, str]:
    """Rank 1 differs in a field of its configuration, or in a version."""
    world, config = start(30), toy_config()
    if world.rank == 1 and what == "config":
        config = dataclasses.replace(
            config, training=dataclasses.replace(config.training, gradient_clipping=0.25)
        )
    if world.rank == 1 and what == "versions":
        environment.version_of = lambda name: "9.9" if name == "deepspeed" else version_of(name)
    try:
        return speak_while(environment.describe_start, config, world, 1.0)[1], ""
    except DesyncError as error:
        return "", f"{error.on_all_ranks}: {error}"


@pytest.mark.distributed
def test_ranks_that_would_train_differently_are_refused_and_other_versions_named(run_ranks):
    host = socket.gethostname()
    expected = (
        f"True: rank 1 on {host} has training.gradient_clipping 0.25 and rank 0 has 0.5; give all machines "
        "the same command"
    )
    assert all(error.startswith(expected) for _, error in run_ranks(started_differently, 2, "config"))
    (said, _), (silence, _) = run_ranks(started_differently, 2, "versions")
    assert (
        said.startswith(
            f"rank 1 on {host} has different software from rank 0: deepspeed 9.9 instead of "
            f"{version_of('deepspeed')};"
        )
        and silence == ""
    )
    assert run_ranks(started_differently, 2, "nothing") == [("", ""), ("", "")]


def test_nested_types_become_dotted_names():
    assert environment.flat({"a": {"b": 1, "c": []}, "d": [{"e": None}, 2]}) == {
        "a.b": 1,
        "a.c": [],
        "d.0.e": None,
        "d.1": 2,
    }


def test_starts_are_a_list_with_the_latest_last(tmp_path):
    for step in (0, 7):
        environment.write_start(tmp_path / "environment.json", {"started": str(step)}, step)
    assert json.loads((tmp_path / "environment.json").read_text()) == [
        {"step": 0, "started": "0"},
        {"step": 7, "started": "7"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_git_state_is_none_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.git_state() is None


def test_a_commit_is_of_a_checkout_or_a_worktree_not_of_the_user_s_repository(tmp_path, monkeypatch):
    def git(folder, *words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(
            ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def state_of(root):
        monkeypatch.setattr(environment, "__file__", str(root / "flava_ds/watching/environment.py"))
        return environment.git_state()

    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    checkout, worktree = tmp_path / "checkout", tmp_path / "worktree"
    installed = checkout / "venv" / "site-packages"
    for root in (checkout, installed):
        (root / "flava_ds/watching").mkdir(parents=True)
        (root / "flava_ds/watching/environment.py").write_text("")
    git(checkout, "init")
    git(checkout, "add", "flava_ds")
    git(checkout, "commit", "-m", "all")
    git(checkout, "worktree", "add", str(worktree))
    commit = git(checkout, "rev-parse", "HEAD")
    assert state_of(checkout) == state_of(worktree) == {"commit": commit, "changed": False}
    (worktree / "flava_ds/watching/environment.py").write_text("changed")
    assert state_of(worktree) == {"commit": commit, "changed": True}
    assert state_of(installed) is None, "the repository around it is not this package's"
