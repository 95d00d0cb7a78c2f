"""A Slurm cluster of the two hosts of pretend_hosts: its own controller and daemons, with a configuration in
a folder. Each host has one "GPU", a device file that nobody opens.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pretend_hosts import ADDRESSES, Host, two_hosts

PROGRAMS = ("slurmctld=slurm-wlm", "slurmd=slurm-wlm", "sbatch=slurm-wlm")
CONFIG = """
ClusterName=pretend
SlurmctldHost=host0
SlurmUser=root
SlurmdUser=root
AuthType=auth/slurm
CredType=cred/slurm
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={hosts} CPUs=2 RealMemory=1000 Gres=gpu:1 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""
OTHER_FILES = {
    "cgroup.conf": "CgroupPlugin=disabled\n",
    "gres.conf": "NodeName={hosts} Name=gpu File=/dev/null AutoDetect=off\n",
}
GPU_OPTIONS = ("--gpus-per-node=1", "--cpus-per-task=2")
"""Options of sbatch for these hosts; the launcher asks for the eight GPUs of a usual one."""
PATIENCE_S = 600.0
"""Not a measure of speed: what waits gives up then."""


@dataclass
class Cluster:
    """A running cluster. Commands run on host0 in this process's working directory."""

    hosts: list[Host]
    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def run(self, *words: str) -> str:
        """Runs a command on host0; returns what it printed. Raises: AssertionError when it fails."""
        done = self.hosts[0].run(*words, env=self.environment, timeout=PATIENCE_S)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def submit(self, *words: str) -> str:
        """Submits a job by sbatch; returns its number."""
        return self.run("sbatch", "--parsable", *words).strip()

    def job(self, number: str) -> dict[str, str]:
        """Returns Slurm's own record of a job, e.g. JobState and Restarts."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition. Raises: AssertionError with the queue and what the jobs have said."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                said = "\n".join(path.read_text()[-3000:] for path in Path.cwd().glob("*.log"))
                raise AssertionError(f"not {what}: {self.run('squeue')}{self.run('sinfo', '--long')}{said}")
            time.sleep(0.1)

    def start_again(self, number: str) -> None:
        """Shortens the two minutes for which Slurm holds back a job that has been requeued.

        Not to nothing: a host refuses a job that it has killed in the same second, and an `srun` that waits
        for tasks of a lost host kills, half a minute later, the step of its number: that of the next attempt.
        """
        self.wait_for(lambda: not self._sruns(), "ended: every srun of the attempt before")
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now+3")

    def _sruns(self) -> list[str]:
        """Returns the states of host0's live processes of that name; its first process keeps dead ones."""
        states = self.hosts[0].run("ps", "-C", "srun", "-o", "stat=").stdout.split()
        return [state for state in states if not state.startswith("Z")]

    def start(self, host: Host) -> None:
        """Starts a host's daemon."""
        self._start(host.name, host.command("slurmd", "-D", "-N", host.name))

    def lose(self, host: Host) -> None:
        """Kills the host's daemon and everything that the job has started there."""
        subprocess.run(host.command("pkill", "-KILL", "slurm"), check=True)
        subprocess.run(host.command("pkill", "-KILL", "-f", "flava_ds"), check=True)
        self.daemons.pop(host.name).wait()

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.daemon").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """Starts a cluster whose files are in `folder`; it ends with the context."""
    hosts = ",".join(ADDRESSES)
    for name in ("net", "state"):
        (folder / name).mkdir()
    for name, text in {"slurm.conf": CONFIG, **OTHER_FILES}.items():
        (folder / name).write_text(text.format(folder=folder, hosts=hosts))
    (folder / "slurm.key").write_bytes(secrets.token_bytes(64))
    (folder / "slurm.key").chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment = {
        **kept,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "FLAVA_DS_CLONE": str(Path(__file__).parents[2]),
    }
    with ExitStack() as stack:
        cluster = Cluster(stack.enter_context(two_hosts(folder / "net", ssh=False)), folder, environment)
        stack.callback(lambda: [daemon.kill() for daemon in cluster.daemons.values()])
        cluster._start("controller", cluster.hosts[0].command("slurmctld", "-D", "-i"))
        # a daemon that starts before the controller answers may never be known to it
        cluster.wait_for(
            lambda: not cluster.hosts[0].run("sinfo", env=environment).returncode, "answering: the controller"
        )
        for host in cluster.hosts:
            cluster.start(host)
        cluster.wait_for(lambda: _idle(cluster) == len(ADDRESSES), "idle: both hosts")
        yield cluster


def _idle(cluster: Cluster) -> int:
    """Counts the idle hosts; none while the controller starts."""
    done = cluster.hosts[0].run("sinfo", "--json", env=cluster.environment)
    if done.returncode:
        return 0
    rows = json.loads(done.stdout)["sinfo"]
    return max((row["nodes"]["idle"] for row in rows), default=0)
