"""Launchers: valid shell and YAML, and with --dry-run the exact command; all start the same module."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launchers"
SCRIPTS = sorted(path for path in [*FOLDER.iterdir(), *(ROOT / ".ci").iterdir()] if path.suffix in (".sh", ".sbatch", ""))


def dry_run(script: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a launcher with --dry-run, without the variables of a surrounding job."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") and name not in ("RANKS", "RESTARTS", "HOSTFILE", "PORT")}
    command = ["bash", str(FOLDER / script), "--dry-run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**kept, **variables})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_parses(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(["shellcheck", "--shell=bash", "--severity=warning", "--exclude=SC1091,SC2034", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_local_prints_torchrun():
    done = dry_run("local.sh", "flava_base", "--optimizer.lr", "3e-4", "--name", "a b", RANKS="4")
    assert done.stderr == ""
    assert done.stdout == ("torchrun --standalone --nproc_per_node 4 --max_restarts 2 --module flava_ds.train flava_base --optimizer.lr 3e-4 --name 'a b'\n")


def test_deepspeed_prints_the_hostfile_launch(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=8\n")
    done = dry_run("deepspeed.sh", "flava_base", HOSTFILE=str(hosts))
    assert done.stdout == f"deepspeed --hostfile {hosts} --launcher pdsh --module flava_ds.train flava_base\n"


def test_deepspeed_without_hostfile_says_what_to_write(tmp_path):
    done = dry_run("deepspeed.sh", "flava_base", HOSTFILE=str(tmp_path / "gone"))
    assert done.returncode == 2 and "write one line for each machine" in done.stderr


def test_slurm_prints_srun():
    done = dry_run("slurm.sbatch", "flava_base", SLURM_JOB_NUM_NODES="16", SLURM_GPUS_ON_NODE="4", SLURM_JOB_ID="77", SLURM_SUBMIT_DIR=str(ROOT))
    assert done.stdout == (
        "srun --kill-on-bad-exit=1 torchrun --nnodes 16 --nproc_per_node 4 --max_restarts 2 "
        "--rdzv_backend c10d --rdzv_endpoint localhost:29500 --rdzv_id 77 --module flava_ds.train flava_base\n"
    )


@pytest.mark.parametrize("script", ["local.sh", "deepspeed.sh", "slurm.sbatch"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: no recipe; usage:"),
        (["flava_bose"], "did you mean 'flava_base'?"),
        (["flava_base", "--optimizer.lrr=1"], "did you mean '--optimizer.lr'?"),
    ],
)
def test_slips_stop_before_the_launch(script, words, message):
    done = dry_run(script, *words)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_kubernetes_objects_fit_together():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((FOLDER / "k8s.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    arguments = container["args"]
    nodes, devices = spec["completions"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == nodes
    assert container["command"] == ["torchrun"] and {f"--nnodes={nodes}", f"--nproc_per_node={devices}"} <= set(arguments)
    assert arguments[arguments.index("--module") + 1] == "flava_ds.train"
    name, port = job["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert f"--rdzv_endpoint={name}-0.{pod['subdomain']}:{port}" in arguments
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == pod["subdomain"] and service["spec"]["selector"] == {"job-name": name}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_overrides_are_options_of_the_recipe():
    yaml = pytest.importorskip("yaml")
    from flava_ds.recipes import resolve

    _, job = yaml.safe_load_all((FOLDER / "k8s.yaml").read_text())
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    start = arguments.index("flava_ds.train") + 1
    assert resolve(arguments[start], arguments[start + 1 :]).data.sources[0].shards == "/data/pmd"


def test_readme_names_every_launcher():
    text = (FOLDER / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in FOLDER.iterdir() if path.name not in ("README.md", "common.sh"))
