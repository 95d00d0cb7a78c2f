"""The debug recipe by launchers/slurm.sbatch on a cluster of two hosts, and what happens to it there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from pretend_slurm import GPU_OPTIONS, Cluster
from two_host_runs import ROOT, Curve, curve, train_on_one_host

SCRIPT = str(ROOT / "launchers" / "slurm.sbatch")
SWEEP = """
base: flava_debug
metric: loss/global_contrastive
fixed: {training.total_steps: 4, schedule.warmup_steps: 1, logging.tensorboard: false}
grid: {optimizer.lr: [1.0e-4, 1.0e-3, 1.0e-2]}
"""
INTERRUPTED_AFTER = 20
"""Steps."""


def overrides(steps: int) -> list[str]:
    """Returns the options of all runs that are compared with each other."""
    words = f"--training.total-steps {steps} --schedule.warmup-steps 2 --checkpoint.every-steps 15"
    return [*words.split(), "--logging.no-tensorboard"]


def expected(folder: Path, steps: int) -> Curve:
    """Trains on two ranks of one host, without Slurm and without an interruption; returns the curve."""
    return train_on_one_host(folder, f"one host, {steps} steps", overrides(steps))


class SlurmRun:
    """A run of `steps` steps under a name, submitted with sbatch's `options`."""

    def __init__(self, cluster: Cluster, name: str, steps: int, *options: str) -> None:
        self.cluster, self.name, self.steps = cluster, name, steps
        self.words = ["flava_debug", "--name", name, *overrides(steps)]
        self.command = ["sbatch", *GPU_OPTIONS, *options, "launchers/slurm.sbatch", *self.words]
        self.job = self.submit(*options)

    def submit(self, *options: str) -> str:
        """Submits the run, once more perhaps; returns the job's number."""
        return self.cluster.submit(*GPU_OPTIONS, *options, SCRIPT, *self.words)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path("runs") / self.name

    def said(self) -> str:
        """Returns what the job has written so far."""
        path = Path(f"flava_ds-{self.job}.log")
        return path.read_text() if path.is_file() else ""

    def steps_logged(self) -> int:
        """Counts the steps that the run has logged."""
        log = self.folder / "log.jsonl"
        return sum("loss/" in line for line in log.read_text().splitlines()) if log.is_file() else 0

    def wait_for_steps(self) -> None:
        """Waits until the run may be interrupted."""
        self.cluster.wait_for(lambda: self.steps_logged() >= INTERRUPTED_AFTER, f"training: {self.name}")

    def wait_for(self, *states: str) -> None:
        """Waits until the job's state is one of `states`."""
        self.cluster.wait_for(
            lambda: self.cluster.job(self.job)["JobState"] in states, f"{' or '.join(states)}: {self.name}"
        )

    def finish(self, requeued: int = 0) -> None:
        """Waits for the job's end, which has to be that of the run, after `requeued` beginnings at least."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        restarts, job = 0, {"JobState": ""}
        while job["JobState"] not in ends or restarts < requeued:
            self.wait_for("PENDING", *ends)
            job = self.cluster.job(self.job)
            if job["JobState"] == "PENDING" and int(job["Restarts"]) > restarts:
                restarts = int(job["Restarts"])
                self.cluster.start_again(self.job)
        assert job["JobState"] == "COMPLETED", f"{job}\n{self.said()[-3000:]}"

    def continued_from(self) -> int | None:
        """Returns the step of the checkpoint from which the last attempt went on."""
        steps = re.findall(r"continuing from .*step_(\d+)", self.said())
        return int(steps[-1]) if steps else None

    def curve(self) -> Curve:
        """Returns losses, accuracies and gradient norms of all steps."""
        return curve(Path.cwd(), self.name)


def undisturbed(cluster: Cluster, steps: int) -> SlurmRun:
    """Trains to the end."""
    run = SlurmRun(cluster, "undisturbed", steps)
    run.finish()
    return run


def at_time_limit(cluster: Cluster, steps: int) -> SlurmRun:
    """Trains for longer than the limit of two minutes, 80 seconds before which Slurm sends its signal."""
    run = SlurmRun(cluster, "time limit", steps, "--time=2", "--signal=B:USR1@80")
    run.finish(requeued=1)
    return run


def signalled(cluster: Cluster, steps: int) -> SlurmRun:
    """Trains until the batch script gets the signal that Slurm sends before a time limit."""
    run = SlurmRun(cluster, "signalled", steps)
    run.wait_for_steps()
    cluster.run("scancel", "--signal=USR1", "--batch", run.job)
    run.finish(requeued=1)
    return run


def preempted(cluster: Cluster, steps: int) -> SlurmRun:
    """Trains until a job of a partition with a higher priority wants both hosts."""
    run = SlurmRun(cluster, "preempted", steps)
    run.wait_for_steps()
    urgent = cluster.submit("--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    run.finish(requeued=1)
    assert cluster.job(urgent)["JobState"] == "COMPLETED"
    return run


def without_a_host(cluster: Cluster, steps: int) -> SlurmRun:
    """Trains until one host is gone, which comes back later."""
    run = SlurmRun(cluster, "host lost", steps)
    run.wait_for_steps()
    cluster.lose(cluster.hosts[1])
    run.wait_for("PENDING")
    cluster.start(cluster.hosts[1])
    run.finish(requeued=1)
    return run


def cancelled(cluster: Cluster, steps: int) -> SlurmRun:
    """Trains until the user cancels the job, and submits it again."""
    run = SlurmRun(cluster, "cancelled", steps)
    run.wait_for_steps()
    cluster.run("scancel", run.job)
    run.wait_for("CANCELLED")
    run.job = run.submit()
    run.finish()
    return run


INTERRUPTIONS: dict[str, Callable[[Cluster, int], SlurmRun]] = {
    "scancel --signal=USR1 --batch": signalled,
    "preemption with a grace time": preempted,
    "a host lost": without_a_host,
    "scancel, then submitted again": cancelled,
}


def array_of_runs(cluster: Cluster) -> dict[str, str]:
    """Runs a sweep of three runs as a job array, two at a time on one host each; returns their states."""
    Path("rates.yaml").write_text(SWEEP)
    said = cluster.run(
        "flava-ds", "sweep", "rates.yaml", "--slurm", "--nodes", "1", "--at-once", "2", "--yes"
    )
    script = next(word for word in said.split() if word.endswith("sweep.sbatch"))
    array = cluster.submit(*GPU_OPTIONS, script)
    cluster.wait_for(lambda: array not in cluster.run("squeue", "--noheader"), "finished: the array")
    found = (Path(script).parent / "states").glob("*.json")
    return {path.stem: json.loads(path.read_text())["state"] for path in found}
