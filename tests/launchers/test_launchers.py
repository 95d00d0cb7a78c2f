"""Launchers: valid shell and YAML, and with --dry-run the exact command; all start the same module."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dry_runs import FOLDER, ROOT, STARTED, dry_run, hostfile, printed, refused

from flava_ds.recipes import resolve

SCRIPTS = sorted(
    path for path in [*FOLDER.iterdir(), *(ROOT / ".ci").iterdir()] if path.suffix in (".sh", ".sbatch", "")
)
SAFE = "PYTHONSAFEPATH=1"
TORCHRUN = f"env {SAFE} " + (
    "OMP_NUM_THREADS={threads} TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280 python3 -m flava_ds.ranks.supervise"
)
SSH = "'PDSH_SSH_ARGS_APPEND=-o ServerAliveInterval=15 -o ServerAliveCountMax=4'"


def words_of(command: str) -> list[str]:
    """Returns the arguments that a shell makes of a printed command."""
    return subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_parses(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (Debian: shellcheck)"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "--severity=warning", "--exclude=SC1091,SC2034", str(script)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_torchrun_on_one_machine():
    command = printed("torchrun.sh", "flava_base", "--optimizer.lr", "3e-4", "--name", "a b", RANKS="4")
    start = TORCHRUN.format(threads=1)
    assert command == (
        f"{start} --standalone --nproc_per_node 4 --max_restarts 2 --module flava_ds.train "
        "flava_base --optimizer.lr 3e-4 --name 'a b'"
    )


def test_ranks_of_a_machine_are_the_gpus_that_are_visible(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: some"; done\n')
    program.chmod(0o755)
    counted = f"set -eu; unset CUDA_VISIBLE_DEVICES; source {shlex.quote(str(FOLDER))}/common.sh; count_gpus"
    for visible in ("2,3", "1", ""):
        counted += f"; CUDA_VISIBLE_DEVICES={visible} count_gpus"
    done = subprocess.run(
        ["bash", "-c", counted], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.split() == ["4", "2", "1", "1"]


def test_torchrun_on_several_machines():
    command = printed(
        "torchrun.sh", "flava_base", NODES="2:4", HEAD="node1", RANKS="8", RESTARTS="5", OMP_NUM_THREADS="6"
    )
    assert command == (
        f"{TORCHRUN.format(threads=6)} --nnodes 2:4 --rdzv_backend c10d --rdzv_endpoint node1:29500 "
        "--rdzv_id flava_ds "
        f"--nproc_per_node 8 --max_restarts 5 --module flava_ds.train flava_base"
    )
    assert "NODES=2 needs HEAD" in refused("torchrun.sh", "flava_base", NODES="2")


def test_deepspeed_over_pdsh(tmp_path):
    hosts = hostfile(tmp_path)
    assert printed("deepspeed.sh", "flava_base", HOSTFILE=str(hosts)) == (
        f"env {SAFE} {SSH} DS_ENV_FILE={hosts}.env deepspeed --hostfile {hosts} --launcher pdsh "
        "--force_multi "
        "--master_addr node1 --master_port 29500 --module flava_ds.train flava_base"
    )
    assert not Path(f"{hosts}.env").exists(), "a dry run must write nothing"


def test_arguments_survive_the_remote_shell_of_pdsh(tmp_path):
    """DeepSpeed puts double quotes around an argument with a space; a remote bash expands the rest, braces of
    shard patterns among it.
    """
    from deepspeed.launcher.multinode_runner import PDSHRunner

    values = ["/data/{0000..0099}.tar", "a b", '$HOME `id` \\ "x"', "it's", "[a]*;(b)&", "pipe:cat x|y"]
    given = ["flava_base", *[word for value in values for word in ("--name", value)]]
    words = words_of(printed("deepspeed.sh", *given, HOSTFILE=str(hostfile(tmp_path))))
    arguments = words[words.index("flava_ds.train") + 1 :]
    sent = PDSHRunner.parse_user_args(
        type("Runner", (), {"args": type("Arguments", (), {"user_args": arguments})})()
    )
    assert words_of(" ".join(sent)) == given


def test_deepspeed_over_open_mpi(tmp_path):
    hosts = hostfile(tmp_path)
    command = printed(
        "deepspeed.sh",
        "flava_base",
        "--name",
        "a b",
        HOSTFILE=str(hosts),
        LAUNCHER="openmpi",
        INTERFACE="ib0",
        HEAD="10.0.0.1",
        PORT="29511",
    )
    assert command == (
        f"env {SAFE} DS_ENV_FILE={hosts}.env deepspeed --hostfile {hosts} --launcher openmpi "
        "'--launcher_args=--bind-to none --mca btl_tcp_if_include ib0' "
        "--master_addr 10.0.0.1 --master_port 29511 --module flava_ds.train flava_base --name 'a b'"
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HOSTFILE": "gone"}, "write one line for each machine"),
        ({"LAUNCHER": "openmpi"}, "LAUNCHER=openmpi needs INTERFACE"),
        ({"LAUNCHER": "rsh"}, "LAUNCHER 'rsh' is neither pdsh nor openmpi"),
    ],
)
def test_deepspeed_says_what_is_missing(tmp_path, variables, message):
    done = dry_run("deepspeed.sh", "flava_base", **{"HOSTFILE": str(hostfile(tmp_path)), **variables})
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_deepspeed_says_which_program_is_missing(tmp_path):
    """On a path with all that the script calls but ssh."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "env", "dirname", "basename", "awk", "sed", "grep"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    command = ["bash", str(FOLDER / "deepspeed.sh"), "flava_debug"]
    path = f"{Path(sys.executable).parent}:{tmp_path / 'bin'}"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={"PATH": path, "HOSTFILE": str(hostfile(tmp_path))},
    )  # fmt: skip
    assert done.returncode == 2 and "LAUNCHER=pdsh needs ssh, which is not installed" in done.stderr
    assert not (tmp_path / "hosts.env").exists()


def test_slurm_prints_srun(tmp_path):
    job = {
        "SLURM_JOB_NUM_NODES": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": "3",
        "SLURM_CPUS_PER_TASK": "96",
    }
    assert printed("slurm.sbatch", "flava_base", SLURM_SUBMIT_DIR=str(ROOT), **job) == (
        f"srun --kill-on-bad-exit=1 --cpus-per-task=96 {TORCHRUN.format(threads=8)} --nnodes 16 "
        "--nproc_per_node 4 "
        f"--rdzv_backend c10d --rdzv_endpoint localhost:29500 --rdzv_id 77.3 --max_restarts 2 "
        "--module flava_ds.train flava_base"
    )
    elsewhere = {"SLURM_SUBMIT_DIR": str(tmp_path)}
    assert "srun" in printed("slurm.sbatch", "flava_base", FLAVA_DS_CLONE=str(ROOT), **elsewhere)
    refused = dry_run("slurm.sbatch", "flava_base", **elsewhere)
    assert refused.returncode == 2 and f"error: {tmp_path} is no clone of flava_ds" in refused.stderr


def test_a_requeued_job_has_the_status_of_a_stop(tmp_path):
    """Whatever srun ends with; a sweep's array notes it. The trainer itself: test_slurm_requeue.py. The first
    of ten thousand hosts is the head.
    """
    hosts = "if [ $1 = show ]; then seq -f host%05.0f 10000; else echo $* >> calls; fi"
    for name, body in (
        ("srun", 'echo "$*" >> calls; kill -USR1 $PPID; exit 1'),
        ("scancel", "exit 0"),
        ("scontrol", hosts),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "host[1-10000]"}
    command = ["bash", str(FOLDER / "slurm.sbatch"), "flava_debug"]
    done = subprocess.run(command, cwd=tmp_path, timeout=60, env={"PATH": path, **job})
    started, requeued = (tmp_path / "calls").read_text().splitlines()
    assert "--rdzv_endpoint host00001:29500 " in started
    assert requeued == "requeue 77" and done.returncode == 143


def test_slurm_is_asked_for_a_signal_and_a_requeue():
    text = (FOLDER / "slurm.sbatch").read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {"--requeue", "--signal=B:USR1@300", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)
    assert text.index("#SBATCH") < text.index("\nset -euo"), (
        "Slurm reads options only before the first command"
    )


OVERRIDES = [
    "--data.sources.pmd.shards",
    "/data/{00..09}.tar",
    "--name",
    "it's $(NAME): 1",
    "--logging.run-directory",
    "/data/runs",
]


def manifest(*words: str, **variables: str) -> list[dict]:
    """Returns the Kubernetes objects that a dry run prints."""
    yaml = pytest.importorskip("yaml")
    first, *lines, last = printed("kubernetes.sh", *words, **variables).split("\n")
    assert (first, last) == ("kubectl apply --filename=- <<'MANIFEST'", "MANIFEST")
    return list(yaml.safe_load_all("\n".join(lines)))


def check_pod(pod: dict, name: str, rendezvous: str, nodes: int, gpus: int) -> None:
    """Checks what Kubernetes and torchrun need of a pod, and that the overrides reach the module
    unchanged."""
    (container,) = pod["containers"]
    arguments = [word.replace("$$(", "$(") for word in container["args"]]
    assert (
        container["name"] == name
        and container["command"] == ["python3", "-m", "flava_ds.ranks.supervise"]
        and container["resources"]["limits"] == {"nvidia.com/gpu": gpus}
    )
    assert {f"--nnodes={nodes}", f"--nproc_per_node={gpus}", f"--rdzv_endpoint={rendezvous}"} <= set(
        arguments
    )
    start = arguments.index("--module") + 1
    assert arguments[start:] == ["flava_ds.train", "flava_base", *OVERRIDES]
    assert resolve(arguments[start + 1], arguments[start + 2 :]).name == "it's $(NAME): 1"
    assert {"name": "PYTHONSAFEPATH", "value": "1"} in container["env"]
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    grace = int(
        next(
            variable["value"]
            for variable in container["env"]
            if variable["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
        )
    )
    assert pod["terminationGracePeriodSeconds"] > grace, (
        "Kubernetes must not kill the ranks before torchrun does"
    )
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_kubernetes_job():
    service, job = manifest("flava_base", *OVERRIDES, NODES="4", GPUS="2", NAME="big")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert (
        job["apiVersion"],
        job["kind"],
        spec["completionMode"],
        spec["parallelism"],
        spec["completions"],
    ) == ("batch/v1", "Job", "Indexed", 4, 4)
    check_pod(pod, "train", "big-0.big:29500", nodes=4, gpus=2)
    assert (
        pod["restartPolicy"] == "OnFailure"
        and pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"] == "big"
    )
    assert (
        service["spec"]["clusterIP"] == "None"
        and service["spec"]["selector"] == {"job-name": "big"}
        and service["spec"]["publishNotReadyAddresses"]
    )
    assert service["spec"]["ports"] == [{"name": "rendezvous", "port": 29500}]


def test_kubernetes_pytorchjob():
    (job,) = manifest("flava_base", *OVERRIDES, KIND="PyTorchJob", NODES="4", GPUS="2")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert {role: replica["replicas"] for role, replica in replicas.items()} == {"Master": 1, "Worker": 3}
    for replica in replicas.values():
        assert replica["restartPolicy"] == "OnFailure"
        check_pod(replica["template"]["spec"], "pytorch", "$(MASTER_ADDR):$(MASTER_PORT)", nodes=4, gpus=2)


def test_kubernetes_refuses_what_cannot_be():
    for variables, message in (
        ({"KIND": "MPIJob"}, "neither Job nor PyTorchJob"),
        ({"KIND": "PyTorchJob", "NODES": "1"}, "needs NODES of 2 or more"),
    ):
        done = dry_run("kubernetes.sh", "flava_base", **variables)
        assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_readme_names_every_launcher():
    text = (FOLDER / "README.md").read_text()
    assert all(
        f"`{path.name}`" in text for path in FOLDER.iterdir() if path.name not in ("README.md", "common.sh")
    )
    assert set(STARTED) == {path.name for path in FOLDER.iterdir()} - {"README.md", "common.sh"}
