"""The demo's training process: starting it, showing its progress, measuring its steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from flava_ds.config import Config
from flava_ds.errors import CheckpointError, UserError
from flava_ds.ranks.endings import last_words, output_lines
from flava_ds.ranks.launch import Launch
from flava_ds.watching.log_line import console_line, show
from flava_ds.watching.run_log import read_log

PATIENCE_S = 90.0
"""Seconds that the ranks of a killed demo have to end."""
PRINT_EVERY_S = 20.0
"""Seconds between lines if the output is not a terminal."""
GUARD = """
import os, signal, sys, time
sys.stdin.read()
for number in (signal.SIGINT, *[0] * 60, signal.SIGTERM):
    os.killpg(int(sys.argv[1]), number)
    time.sleep(1)
"""
"""Waits for the end of its input, i.e. of the process that holds the other end, then stops a process group.

It sends SIGINT, and after a minute SIGTERM to what is left. Signal 0 does nothing, but ends the guard once
the group is gone.
"""


def follow_training(launch: Launch, run_path: Path, total_steps: int) -> None:
    """Runs the command with its output in train.log and shows the latest step.

    Raises: UserError with the last line of train.log if it fails.
    """
    run_path.mkdir(parents=True, exist_ok=True)
    output = run_path / "train.log"
    print(f"{launch}\n(output in {output})", flush=True)
    with output.open("ab") as file:
        environment = {**os.environ, **launch.environment}
        process = subprocess.Popen(
            launch.arguments, env=environment, stdout=file, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            with end_together(process):
                show_progress(process, run_path / "log.jsonl", total_steps)
        finally:
            if process.poll() is None:
                stop(process)
    if process.returncode:
        why = last_words(output_lines(output)) or "it printed nothing"
        raise UserError(f"training ended with status {process.returncode}: {why} (all of it: {output})")


@contextmanager
def end_together(process: subprocess.Popen) -> Iterator[None]:
    """Interrupts `process`'s group when this process ends in any way, so that no ranks stay behind.

    The group, because DeepSpeed's launcher is two processes, the first of which neither forwards signals nor
    stops the second. The guard has its own group, out of reach of what kills the demo's.
    """
    command = [sys.executable, "-I", "-S", "-c", GUARD, str(process.pid)]
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()  # closes its input and waits


def stop(process: subprocess.Popen, patience_s: float = 60.0) -> None:
    """Interrupts a process and its group like Ctrl-C, and kills them if it does not end in time."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def show_progress(process: subprocess.Popen, log: Path, total_steps: int) -> None:
    """Shows the newest logged step until the process ends.

    On a terminal the line changes in place; otherwise a line is printed now and then.
    """
    live = sys.stdout.isatty()
    shown, printed_at = None, 0.0
    while True:
        ended = process.poll() is not None
        steps = read_log(log).steps
        newest = steps[-1] if steps else None
        if (
            newest is not None
            and newest != shown
            and (live or ended or time.monotonic() - printed_at >= PRINT_EVERY_S)
        ):
            show(console_line(newest, total_steps), last=False)
            shown, printed_at = newest, time.monotonic()
        if ended:
            break
        time.sleep(0.5)
    if live and shown:
        print(flush=True)


def wait_for_folder(run_path: Path) -> None:
    """Waits for the ranks of a killed demo, which may still be writing a checkpoint.

    Raises: CheckpointError if they do not end.
    """
    from flava_ds.ranks.run_lock import RunLock

    deadline, said = time.monotonic() + PATIENCE_S, False
    while True:
        lock = RunLock(run_path)
        try:
            lock.acquire()
        except CheckpointError:
            if time.monotonic() > deadline:
                raise
        else:
            lock.release()
            return
        if not said:
            print("waiting for the processes of the stopped demo", flush=True)
            said = True
        time.sleep(0.5)


def seconds_per_step(log: Path, config: Config) -> float:
    """Returns the typical seconds per step, averaged over sources by weight, from a short run's log.

    Takes medians, because the first steps of a run warm up.

    Raises: UserError if no step was logged.
    """
    by_source: dict[str, list[float]] = {}
    for step in read_log(log).steps:
        by_source.setdefault(step["source"], []).append(step["seconds_per_step"])
    if not by_source:
        raise UserError(f"{log}: no step was logged; see {log.with_name('train.log')}")
    typical = {source: median(times) for source, times in by_source.items()}
    slowest = max(typical.values())
    weights = {name: source.weight for name, source in config.data.sources.items()}
    return sum(weight * typical.get(name, slowest) for name, weight in weights.items()) / sum(
        weights.values()
    )
