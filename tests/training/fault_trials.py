"""Trials of a fault campaign: each injects one fault into a real run at a moment that is drawn from a seed,
lets the run go on, and compares it bit by bit with one that was never disturbed.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fault_cases import Gauntlet
from real_runs import Job, steps_of

from flava_ds.config import Config, EngineConfig

STEPS, TIMEOUT_S, END_S = 40, 10, 180.0
"""Steps of a run, its engine.communication_timeout_s, and what counts as a run that does not end."""
MOST_STARTS = 3
"""Starts after the fault until a run counts as one that cannot go on."""
STATUSES = frozenset({0, 1, 2, *(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))})
"""What a rank that was not killed may end with (docs/faults.md)."""

Prepare = Callable[[int], None]


class Trial:
    """One run, the fault that befalls it, and what was wrong about what followed."""

    def __init__(self, gauntlet: Gauntlet, seed: int, number: int) -> None:
        self.gauntlet, self.seed, self.number = gauntlet, seed, number
        self.fault = fault_of(seed, number)
        self.draw = random.Random(f"{seed} {number}")
        self.config = self.configured()
        self.drawn: list[str] = []
        self.statuses: list[int] = []
        self.said, self.starts = "", 0
        self.seconds: float | None = None
        self.problems: list[str] = []
        self.most_lines = 1
        """Lines of errors that may be: one of the job, or one of each part that cannot hear the other."""
        self.job: Any = None
        self.every_start: Prepare | None = None
        """What every start needs, the ones after the fault, too."""

    def configured(self, **data: Any) -> Config:
        """Returns the run's configuration, with some fields of `data` changed."""
        config = self.gauntlet.config(
            f"trial_{self.number:04d}", engine=EngineConfig(communication_timeout_s=TIMEOUT_S)
        )
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.config.run_path / "checkpoints"

    def start(self, prepare: Prepare | None = None) -> None:
        """Starts the ranks."""
        self.job = Job(self.config, 2, prepare or self.every_start)

    def rank(self) -> int:
        """Draws a rank."""
        rank = self.draw.randrange(2)
        self.drawn.append(f"rank {rank}")
        return rank

    def wait_for_moment(self) -> None:
        """Waits for a moment that is drawn: while the ranks start, or some time after a step."""
        step, later = self.draw.randint(-2, self.gauntlet.steps - 6), self.draw.uniform(0, 0.15)
        if step < 0:
            later = self.draw.uniform(0, 3)
            self.drawn.append(f"{later:.2f} s after the start")
        else:
            self.drawn.append(f"{1000 * later:.0f} ms after step {step}")
            self.job.wait_until(lambda: len(steps_of(self.config.run_path)) > step)
        time.sleep(later)

    def inject(self, fault: Callable[[], object]) -> None:
        """Lets the fault happen and waits for the end of all ranks."""
        begun = time.monotonic()
        fault()
        self.end(begun)

    def end(self, begun: float) -> None:
        """Waits for the end of all ranks and looks at how they ended."""
        self.statuses = self.job.wait(END_S)
        self.seconds = round(time.monotonic() - begun, 1)
        words = self.job.said()
        errors = [line for line in words.splitlines() if line.startswith("error: ")]
        self.said = (errors or [""])[0][:400]
        if "Traceback" in words:
            self.problems.append("a traceback")
        if len(errors) > self.most_lines:
            self.problems.append(f"{len(errors)} lines of errors")
        if wrong := [status for status in self.statuses if status >= 0 and status not in STATUSES]:
            self.problems.append(f"status {wrong[0]}")

    def go_on(self) -> bool:
        """Starts the run again until it ends well, when its words say so, and compares it; says whether it is
        equal.
        """
        statuses = self.statuses
        while any(statuses) and self.starts < MOST_STARTS:
            self.starts += 1
            job = Job(self.config, 2, self.every_start)
            statuses = job.wait(END_S)
            if any(statuses) and (told := re.search(r"start again in (\d+) s", job.said())):
                time.sleep(int(told[1]))
            elif any(statuses):
                self.problems.append(f"start {self.starts} ended with {statuses}: {job.errors()[:1]}")
        return not any(statuses) and self.gauntlet.equal(self.config, [0, 0])

    def row(self) -> dict[str, Any]:
        """Runs the trial; returns what a table keeps of it."""
        equal = None
        try:
            equal = FAULTS[self.fault](self)
            equal = self.go_on() if equal is None else equal
        except TimeoutError as error:
            self.problems.append(f"did not end within {END_S:g} s: {str(error)[-300:]}")
        finally:
            if self.job is not None:
                self.job.kill()
        kept = ("fault", "drawn", "statuses", "seconds", "said", "starts", "problems")
        return {"trial": self.number, **{name: getattr(self, name) for name in kept}, "equal": bool(equal)}


def fault_of(seed: int, number: int) -> str:
    """Returns the fault of a trial: each occurs as often as WEIGHTS says in every round, in an order of its
    own.
    """
    deck = [fault for fault in FAULTS for _ in range(WEIGHTS.get(fault, 2))]
    round_, place = divmod(number, len(deck))
    random.Random(f"{seed} round {round_}").shuffle(deck)
    return deck[place]


def kill_rank(trial: Trial) -> None:
    """Kills one rank; nobody ends the other."""
    trial.start()
    rank = trial.rank()
    trial.wait_for_moment()
    trial.inject(lambda: trial.job.signal(signal.SIGKILL, rank))


def kill_all(trial: Trial) -> None:
    """Kills all ranks at once, as the loss of a machine does."""
    trial.start()
    trial.wait_for_moment()
    trial.inject(trial.job.kill)


def kill_in_a_save(trial: Trial) -> None:
    """Kills one rank while a checkpoint is being written, slowly."""
    pause = trial.draw.uniform(0.005, 0.1)
    trial.start(DelayedWrites(pause, trial.draw.random()))
    rank, wanted = trial.rank(), trial.draw.randint(1, 6)
    trial.drawn.append(f"in save {wanted}, {1000 * pause:.0f} ms a write")
    seen: set[str] = set()

    def reached() -> bool:
        seen.update(path.name for path in trial.checkpoints.glob("*.tmp-*"))
        return len(seen) >= wanted

    trial.job.wait_until(reached, pause_s=0.002)
    time.sleep(trial.draw.uniform(0, 4 * pause))
    trial.inject(lambda: trial.job.signal(signal.SIGKILL, rank))


def kill_loader(trial: Trial) -> None:
    """Kills a loader process of one rank."""
    _to_a_loader(trial, signal.SIGKILL)


def stop_loader(trial: Trial) -> None:
    """Stops a loader process of one rank."""
    _to_a_loader(trial, signal.SIGSTOP)


def _to_a_loader(trial: Trial, number: int) -> None:
    trial.config = trial.configured(num_workers=1, worker_timeout_s=TIMEOUT_S // 2)
    trial.every_start = may_have_children
    trial.start()
    process = trial.job.processes[trial.rank()]
    trial.wait_for_moment()
    trial.job.wait_until(lambda: bool(loaders_of(process.pid)))
    loaders = loaders_of(process.pid)

    def fault() -> None:
        for pid in loaders:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    trial.inject(fault)
    deadline = time.monotonic() + 30
    while left := [pid for pid in loaders if _is_there(pid)]:
        if time.monotonic() > deadline:
            trial.problems.append(f"{len(left)} loader processes are left")
            return
        time.sleep(0.1)


def stop_rank(trial: Trial) -> None:
    """Stops one rank, which hangs from then on."""
    trial.start()
    rank = trial.rank()
    trial.wait_for_moment()
    trial.inject(lambda: trial.job.signal(signal.SIGSTOP, rank))


def pause(trial: Trial) -> None:
    """Stops ranks for a moment, shorter than the timeout; the run goes on as if nothing had been."""
    trial.start()
    ranks = trial.draw.choice([[0], [1], [0, 1]])
    seconds = trial.draw.uniform(0.1, TIMEOUT_S / 3)
    trial.drawn.append(f"ranks {ranks} for {seconds:.1f} s")
    trial.wait_for_moment()

    def fault() -> None:
        for rank in ranks:
            trial.job.signal(signal.SIGSTOP, rank)
        time.sleep(seconds)
        for rank in ranks:
            trial.job.signal(signal.SIGCONT, rank)

    trial.inject(fault)
    if trial.statuses != [0, 0]:
        trial.problems.append("a pause ended the run")


def ask(trial: Trial) -> None:
    """Asks one rank or all to stop, once."""
    trial.start()
    number = trial.draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    ranks = trial.draw.choice([[0], [1], [0, 1]])
    trial.drawn.append(f"{number.name} to ranks {ranks}")
    trial.wait_for_moment()

    def fault() -> None:
        for rank in ranks:
            trial.job.signal(number, rank)

    trial.inject(fault)


class DelayedWrites:
    """Makes writes of checkpoints slow, on one rank or on both."""

    def __init__(self, seconds: float, which: float) -> None:
        self.seconds, self.which = seconds, which

    def __call__(self, rank: int) -> None:
        if rank == int(self.which * 3):  # a third of the trials delays both
            return
        from flava_ds.storage.tensor_files import HashingWriter

        write = HashingWriter.write

        def slowly(writer: Any, data: Any) -> None:
            time.sleep(self.seconds)
            write(writer, data)

        HashingWriter.write = slowly  # type: ignore[method-assign]


def may_have_children(rank: int) -> None:
    """Allows a daemonic rank loader processes, which are forked from it as under a launcher."""
    import multiprocessing

    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def loaders_of(pid: int) -> list[int]:
    """Returns the loader processes of a rank: they are forked from it; multiprocessing's helpers have
    commands of their own.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(word) for word in words if Path(f"/proc/{word}/cmdline").read_bytes() == command]
    except OSError:
        return []


def _is_there(pid: int) -> bool:
    """Tells whether a process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


FAULTS: dict[str, Callable[[Trial], bool | None]] = {
    "kill -9 of a rank": kill_rank,
    "kill -9 of all ranks at once": kill_all,
    "kill -9 of a rank in a slow save": kill_in_a_save,
    "kill -9 of a loader process": kill_loader,
    "a loader process hangs": stop_loader,
    "a rank hangs": stop_rank,
    "ranks stand still for a moment": pause,
    "a signal asks the run to stop": ask,
}
WEIGHTS: dict[str, int] = {}
"""How often a fault occurs in a round of trials, where that is not twice."""
