"""Trials of a fault campaign with launchers, supervisors, and two hosts, which are namespaces of this
machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import rank_processes
from fault_trials import END_S, FAULTS, WEIGHTS, Trial
from pretend_hosts import ADDRESSES, LINK, Host, missing, two_hosts
from real_runs import steps_of

from flava_ds import config as configuration

MARK = "FLAVA_FAULT_TRIAL"
"""An environment variable that tells what a trial started: torchrun gives its ranks sessions of their own."""
PORT = "29533"
"""Of the rendezvous: the hosts have ports of their own."""


class Commands:
    """Processes of commands, and what they start, with the interface of a Job; all output goes to one
    file.
    """

    def __init__(self, commands: list[list[str]], folder: Path, **environment: str) -> None:
        """Starts them; `{rank}` in an environment variable is a command's number."""
        self.folder, self.heads = folder, []
        self._mark = f"{MARK}={folder}".encode()
        folder.mkdir(parents=True)
        with (folder / "said").open("wb") as said:
            for number, command in enumerate(commands):
                own = {name: value.format(rank=number) for name, value in environment.items()}
                self.heads.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **rank_processes.ENVIRONMENT, **own, MARK: str(folder)},
                        stdout=said,
                        stderr=said,
                        start_new_session=True,
                    )
                )

    def said(self) -> str:
        """Returns what all have written."""
        return (self.folder / "said").read_text(errors="replace")

    def processes(self) -> list[int]:
        """Returns those of the commands and of what they started that are there; zombies are not."""
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if self._mark in _environment(pid)
        ]

    def rank(self, number: int) -> int | None:
        """Returns the process of a rank, not that of one of its loaders."""
        for pid in sorted(self.processes()):
            if b"RANK=%d" % number in _environment(pid):
                return pid
        return None

    def wait_until(self, condition: Callable[[], bool], pause_s: float = 0.01) -> bool:
        """Waits for a condition; returns False when all have ended before."""
        deadline = time.monotonic() + END_S
        while not condition():
            if all(head.poll() is not None for head in self.heads):
                return condition()
            if time.monotonic() > deadline:
                raise TimeoutError(self.said())
            time.sleep(pause_s)
        return True

    def wait(self, seconds: float) -> list[int]:
        """Returns the commands' statuses once nothing of theirs is there any more. Raises: TimeoutError."""
        deadline = time.monotonic() + seconds
        statuses = [None] * len(self.heads)
        while None in statuses or self.processes():
            statuses = [head.poll() for head in self.heads]
            if time.monotonic() > deadline:
                raise TimeoutError(self.said())
            time.sleep(0.05)
        return statuses

    def kill(self) -> None:
        """Ends what is left."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for head in self.heads:
            head.wait()


def _environment(pid: int) -> list[bytes]:
    """Returns a process's environment; nothing for a zombie, and when it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def start_command(trial: Trial, *options: str) -> None:
    """Starts a run as a user does."""
    folder = trial.config.run_path.with_suffix(".job")
    words = [sys.executable, "-P", "-m", "flava_ds.cli", "train", str(_saved(trial))]
    trial.job = Commands([[*words, "--ranks", "2", *options]], folder)


def _saved(trial: Trial) -> Path:
    """Writes the run's configuration."""
    path = trial.config.run_path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    configuration.save(trial.config, path)
    return path


def _after_a_step(trial: Trial) -> None:
    """Waits for a moment while there are ranks."""
    step, later = trial.draw.randint(0, trial.gauntlet.steps // 2), trial.draw.uniform(0, 0.3)
    trial.drawn.append(f"{1000 * later:.0f} ms after step {step}")
    trial.job.wait_until(lambda: len(steps_of(trial.config.run_path)) > step)
    time.sleep(later)


def kill_launcher(trial: Trial) -> None:
    """Kills the `deepspeed` command; the ranks notice it."""
    start_command(trial)
    _after_a_step(trial)
    trial.inject(trial.job.heads[0].kill)


def kill_supervisor(trial: Trial) -> None:
    """Kills torchrun's agent; the ranks notice it."""
    start_command(trial, "--max-restarts", "2")
    _after_a_step(trial)
    trial.inject(trial.job.heads[0].kill)


def kill_supervised_rank(trial: Trial) -> None:
    """Kills a rank under torchrun's agent, which starts all again."""
    start_command(trial, "--max-restarts", "2")
    number = trial.rank()
    _after_a_step(trial)
    pid = trial.job.rank(number)
    trial.inject(lambda: pid is not None and os.kill(pid, signal.SIGKILL))
    if trial.statuses != [0]:
        trial.problems.append("the supervisor did not go on")


class OnTwoHosts:
    """A run on one rank of each of two hosts, as a step of Slurm's starts it."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        self.stack = ExitStack()
        trial.most_lines = 2
        self.hosts: list[Host] = []

    def __enter__(self) -> OnTwoHosts:
        self.hosts = self.stack.enter_context(two_hosts(self.folder, ssh=False))
        config = str(_saved(self.trial))
        commands = [host.command(sys.executable, "-P", "-m", "flava_ds.train", config) for host in self.hosts]
        environment = {
            "RANK": "{rank}",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": ADDRESSES["host0"],
            "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": LINK,
        }
        self.trial.job = Commands(commands, self.trial.config.run_path.with_suffix(".job"), **environment)
        return self

    def __exit__(self, *error: object) -> None:
        self.trial.job.kill()
        self.stack.close()
        shutil.rmtree(self.folder)

    def link(self, host: int, state: str) -> None:
        """Connects or cuts a host's end of the link."""
        self.hosts[host].run("ip", "link", "set", LINK, state, check=True)


def lose_host(trial: Trial) -> None:
    """Cuts a host off and ends all that runs there, so that not even a connection says good-bye."""
    with OnTwoHosts(trial) as run:
        lost = trial.draw.randrange(2)
        trial.drawn.append(f"host{lost}")
        _after_a_step(trial)

        def fault() -> None:
            # the other end would vanish with the host's network, and would be a sign
            with open(f"/proc/{run.hosts[lost].pid}/ns/net"):
                run.link(lost, "down")
                os.kill(run.hosts[lost].pid, signal.SIGKILL)
                trial.end(time.monotonic())

        fault()


def cut_link(trial: Trial) -> None:
    """Cuts the link for good."""
    with OnTwoHosts(trial) as run:
        end = trial.draw.randrange(2)
        trial.drawn.append(f"host{end}'s end")
        _after_a_step(trial)
        trial.inject(lambda: run.link(end, "down"))


def interrupt_link(trial: Trial) -> None:
    """Cuts the link for a moment; the run goes on as if nothing had been."""
    with OnTwoHosts(trial) as run:
        end, seconds = trial.draw.randrange(2), trial.draw.uniform(0.05, 1.5)
        trial.drawn.append(f"host{end}'s end for {seconds:.1f} s")
        _after_a_step(trial)

        def fault() -> None:
            run.link(end, "down")
            time.sleep(seconds)
            run.link(end, "up")

        trial.inject(fault)
        if trial.statuses != [0, 0]:
            trial.problems.append("an interruption ended the run")


LAUNCHERS = {
    "kill -9 of the launcher": kill_launcher,
    "kill -9 of the supervisor": kill_supervisor,
    "kill -9 of a rank under a supervisor": kill_supervised_rank,
}
HOSTS = {
    "a host is lost": lose_host,
    "the link between two hosts is cut": cut_link,
    "the link between two hosts is interrupted": interrupt_link,
}
FAULTS.update(LAUNCHERS)
if missing(ssh=False) is None:
    FAULTS.update(HOSTS)
WEIGHTS.update(dict.fromkeys([*LAUNCHERS, *HOSTS], 1))
