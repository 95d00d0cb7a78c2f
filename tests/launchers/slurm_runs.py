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
INTERRUPTED_EVERY = 25
CHECKPOINT_EVERY = 15
"""Steps."""


def overrides(steps: int) -> list[str]:
    """Returns the options of all runs that are compared with each other."""
    words = f"--training.total-steps {steps} --schedule.warmup-steps 2 --logging.no-tensorboard"
    return [*words.split(), "--checkpoint.every-steps", str(CHECKPOINT_EVERY)]


def expected(folder: Path, steps: int) -> Curve:
    """Trains on two ranks of one host, without Slurm and without an interruption; returns the curve."""
    return train_on_one_host(folder, f"one host, {steps} steps", overrides(steps))


class SlurmRun:
    """A run of `steps` steps under a name, submitted with sbatch's `options`."""

    def __init__(self, cluster: Cluster, name: str, steps: int, *options: str) -> None:
        self.cluster, self.name, self.steps = cluster, name, steps
        self.words = ["flava_debug", "--name", name, *overrides(steps)]
        self.command = ["sbatch", *GPU_OPTIONS, *options, "launchers/slurm.sbatch", *self.words]
        self.jobs: list[str] = []
        """Numbers, the last one that of the job that trains now."""
        self.submit(*options)

    def submit(self, *options: str) -> None:
        """Submits the run, once more perhaps."""
        self.jobs.append(self.cluster.submit(*GPU_OPTIONS, *options, SCRIPT, *self.words))
        self.restarts = 0

    def said(self) -> str:
        """Returns what the run's jobs have written so far."""
        logs = (Path(f"flava_ds-{job}.log") for job in self.jobs)
        return "".join(log.read_text() for log in logs if log.is_file())

    def steps_logged(self) -> int:
        """Counts the steps that the run has logged."""
        log = Path("runs") / self.name / "log.jsonl"
        return sum("loss/" in line for line in log.read_text().splitlines()) if log.is_file() else 0

    def wait_for_steps(self, steps: int) -> None:
        """Waits until the run may be interrupted."""
        self.cluster.wait_for(lambda: self.steps_logged() >= steps, f"training: {self.name}")

    def record(self) -> dict[str, str]:
        """Returns Slurm's own record of the job."""
        return self.cluster.job(self.jobs[-1])

    def wait_for(self, state: str) -> None:
        """Waits until the job is in a state."""
        self.cluster.wait_for(lambda: self.record()["JobState"] == state, f"{state}: {self.name}")

    def go_on(self) -> None:
        """Waits until Slurm has requeued the job, and has it started again soon."""
        assert (job := self._requeued_or_ended())["JobState"] == "PENDING", f"{job}\n{self.said()[-3000:]}"
        self.restarts = int(job["Restarts"])
        self.cluster.start_again(self.jobs[-1])

    def finish(self) -> None:
        """Waits for the job's end, which has to be that of the run."""
        while (job := self._requeued_or_ended())["JobState"] == "PENDING":
            self.go_on()
        assert job["JobState"] == "COMPLETED", f"{job}\n{self.said()[-3000:]}"

    def _requeued_or_ended(self) -> dict[str, str]:
        """Waits for one of both; returns the job."""
        job: dict[str, str] = {}

        def happened() -> bool:
            job.update(self.record())
            requeued = job["JobState"] == "PENDING" and int(job["Restarts"]) > self.restarts
            return requeued or job["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT")

        self.cluster.wait_for(happened, f"requeued or ended: {self.name}")
        return job

    def continued_from(self) -> list[int]:
        """Returns the steps of the checkpoints from which attempts went on."""
        return [int(step) for step in re.findall(r"continuing from .*step_(\d+)", self.said())]

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
    run.go_on()
    run.finish()
    return run


def signal(run: SlurmRun) -> None:
    """Gives the batch script the signal that Slurm sends before a time limit."""
    run.cluster.run("scancel", "--signal=USR1", "--batch", run.jobs[-1])
    run.go_on()


def preempt(run: SlurmRun) -> None:
    """Submits a job to a partition with a higher priority, which wants both hosts."""
    cluster = run.cluster
    urgent = cluster.submit("--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    run.go_on()
    cluster.wait_for(lambda: cluster.job(urgent)["JobState"] == "COMPLETED", "completed: the urgent job")


def lose_a_host(run: SlurmRun) -> None:
    """Loses one host, which comes back later."""
    run.cluster.lose(run.cluster.hosts[1])
    run.wait_for("PENDING")
    run.cluster.start(run.cluster.hosts[1])
    run.go_on()


def cancel(run: SlurmRun) -> None:
    """Cancels the job, as the user would, and submits it again."""
    run.cluster.run("scancel", run.jobs[-1])
    run.wait_for("CANCELLED")
    run.submit()


INTERRUPTIONS: dict[str, Callable[[SlurmRun], None]] = {
    "scancel --signal=USR1 --batch": signal,
    "preemption with a grace time": preempt,
    "a host lost": lose_a_host,
    "scancel, then submitted again": cancel,
}


def interrupted(cluster: Cluster, steps: int, *ways: str) -> SlurmRun:
    """Trains to the end, and is interrupted after each `INTERRUPTED_EVERY` steps by the next of `ways`."""
    run = SlurmRun(cluster, ", ".join(ways), steps)
    for number, how in enumerate(ways, 1):
        run.wait_for_steps(number * INTERRUPTED_EVERY)
        INTERRUPTIONS[how](run)
    run.finish()
    return run


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
