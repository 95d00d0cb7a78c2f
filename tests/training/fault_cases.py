"""Faults that are injected into real runs, for the tests and for benchmarks/faults.py: what a user sees, how
long it takes, how the run goes on.
"""

from __future__ import annotations

import dataclasses
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from real_runs import Job, curve, real_config, steps_of

from flava_ds.checkpoints.files import latest, place_of
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import CheckpointConfig, Config, EngineConfig

TIMEOUT_S = 6
KILLS = 20


@dataclass(frozen=True)
class Outcome:
    """What a fault led to. `seconds` from the fault to the end of all ranks, None where the run went on;
    `equal`: whether curve and weights of the run that went on are, bitwise, those of the undisturbed one,
    None where nothing had begun."""

    fault: str
    said: str
    seconds: float | None
    equal: bool | None


class Gauntlet:
    """One configuration, its undisturbed curve, and the faults."""

    def __init__(self, folder: Path, steps: int = 24) -> None:
        """Runs `steps` steps undisturbed, once."""
        self.folder, self.steps = folder, steps
        config = self.config("undisturbed")
        Job(config).wait()
        self.expected, self.weights = curve(config.run_path), load_weights(config.run_path)

    def config(self, name: str, **settings) -> Config:
        """Two ranks, three kinds of steps, a checkpoint every two."""
        config = real_config(
            self.folder, name=name, checkpoint=CheckpointConfig(every_steps=2, keep_last=3), **settings
        )
        return dataclasses.replace(
            config, training=dataclasses.replace(config.training, total_steps=self.steps)
        )

    def goes_on(self, config: Config) -> bool:
        """Runs to the end and compares."""
        return self.equal(config, Job(config).wait())

    def equal(self, config: Config, statuses: list[int]) -> bool:
        """Tells whether a run has ended well, with the curve and the weights of the undisturbed one."""
        if statuses != [0, 0] or curve(config.run_path) != self.expected:
            return False
        found = load_weights(config.run_path)
        return found.keys() == self.weights.keys() and all(
            torch.equal(found[name], tensor) for name, tensor in self.weights.items()
        )

    def started(self, config: Config, prepare: Callable[[int], None] | None = None, steps: int = 5) -> Job:
        """Starts a run and waits for some steps of it."""
        job, seen = Job(config, 2, prepare), len(steps_of(config.run_path))
        assert job.wait_until(lambda: len(steps_of(config.run_path)) >= seen + steps), job.said()
        return job

    def kills(self, times: int = KILLS) -> Outcome:
        """Kills a random rank at random moments, again and again: while it starts, in steps, and while a
        checkpoint is being written.
        """
        config, draw, inside, job = self.config("kills"), random.Random(0), 0, None
        checkpoints = config.run_path / "checkpoints"
        for kill in range(times):
            job, seen = (
                Job(config, 2, _write_slowly if kill % 4 == 1 else None),
                len(steps_of(config.run_path)),
            )
            if kill % 4 == 0:
                moment = time.monotonic() + draw.uniform(0, 2)  # or at the first step: ranks may start fast
                job.wait_until(
                    lambda moment=moment, seen=seen: (
                        time.monotonic() > moment or len(steps_of(config.run_path)) > seen
                    )
                )
            elif kill % 4 == 1:
                job.wait_until(lambda: any(checkpoints.glob("*.tmp-*")), pause_s=0.001)
                inside += any(checkpoints.glob("*.tmp-*"))
            else:
                wanted = seen + 1 + draw.randint(0, 1)
                job.wait_until(lambda wanted=wanted: len(steps_of(config.run_path)) >= wanted)
                time.sleep(draw.uniform(0, 0.1))
            job.signal(signal.SIGKILL, draw.randrange(2))
            job.kill()
        return Outcome(
            f"kill -9 of a random rank, {times} times in a row, {inside} of them inside a checkpoint write",
            "",
            None,
            self.goes_on(config),
        )

    def killed_ranks(self) -> list[Outcome]:
        """Kills either rank and leaves the other to itself."""
        fault = "kill -9 of rank {}, nobody ends the others"
        return [
            self._ended(
                fault.format(rank),
                self.config(f"killed{rank}"),
                lambda job, rank=rank: job.signal(signal.SIGKILL, rank),
            )
            for rank in (1, 0)
        ]

    def hangs(self, ranks: Sequence[int] = (1, 0)) -> list[Outcome]:
        """Stops either rank, or one of them."""
        settings = {"engine": EngineConfig(communication_timeout_s=TIMEOUT_S)}
        fault = "rank {} hangs (kill -STOP), communication_timeout_s {}"
        return [
            self._ended(
                fault.format(rank, TIMEOUT_S),
                self.config(f"hang{rank}", **settings),
                lambda job, rank=rank: job.signal(signal.SIGSTOP, rank),
            )
            for rank in ranks
        ]

    def signals(self) -> list[Outcome]:
        """Asks one rank, or both, to stop."""

        def usr1(job: Job) -> None:
            for rank in range(2):
                job.signal(signal.SIGUSR1, rank)

        return [
            self._ended(
                "SIGTERM to one rank",
                self.config("term"),
                lambda job: job.signal(signal.SIGTERM, 1),
                [128 + signal.SIGTERM] * 2,
            ),
            self._ended("SIGUSR1 to all ranks", self.config("usr1"), usr1, [128 + signal.SIGUSR1] * 2),
        ]

    def full_disk(self) -> Outcome:
        """Lets the disk of the checkpoints run full; then there is room."""
        config = self.config("full")
        checkpoints = config.run_path / "checkpoints"
        checkpoints.mkdir(parents=True)
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(checkpoints)], capture_output=True
            ).returncode
            == 0
        )
        try:
            job = Job(config, 2, None if mounted else _limit_files)
            job.wait_until(lambda: len(steps_of(config.run_path)) > 1)
            begun = time.monotonic()
            job.wait()
            seconds = time.monotonic() - begun
            if mounted:
                assert not list(checkpoints.iterdir()), "a save that failed leaves the disk as it was"
                subprocess.run(["mount", "-o", "remount,size=512m", str(checkpoints)], check=True)
            return Outcome(
                "disk full while a checkpoint is written", _last(job), seconds, self.goes_on(config)
            )
        finally:
            if mounted:
                subprocess.run(["umount", str(checkpoints)], check=True)

    def damaged(
        self, faults: Sequence[str] = ("cut short", "with one bit flipped", "missing")
    ) -> list[Outcome]:
        """Damages a file of the latest checkpoint of a stopped run, in three ways or some of them."""
        outcomes = []
        for fault in faults:
            config = self.config("damaged " + fault)
            job = self.started(config, steps=9)
            job.signal(signal.SIGTERM, 0)
            job.wait()
            newest = latest(place_of(config.run_path)).local
            DAMAGES[fault](newest / "weights_00001.safetensors")
            job = Job(config)
            equal = self.equal(config, job.wait())
            (line,) = [
                line for line in job.said(0).splitlines() if "going on from the checkpoint before" in line
            ]
            outcomes.append(
                Outcome(f"a file of the latest checkpoint {fault}", line.partition("] ")[2], None, equal)
            )
        return outcomes

    def unwritable(self) -> Outcome:
        """Puts a file where the run's folder should be."""
        config = self.config("unwritable")
        config.run_path.parent.mkdir(parents=True, exist_ok=True)
        config.run_path.write_text("")
        begun = time.monotonic()
        job = Job(config)
        job.wait()
        return Outcome("unwritable run directory", _last(job), time.monotonic() - begun, None)

    def two_runs(self) -> Outcome:
        """Starts a second run in the folder of one that trains, which is held meanwhile."""
        config = self.config("twice")
        first, begun = self.started(config, steps=2), time.monotonic()
        for rank in range(2):
            first.signal(signal.SIGSTOP, rank)
        second = Job(config)
        second.wait()
        seconds = time.monotonic() - begun
        for rank in range(2):
            first.signal(signal.SIGCONT, rank)
        equal = self.equal(config, first.wait())
        return Outcome("a second run in the same directory", _last(second), seconds, equal)

    def skewed_clock(self) -> Outcome:
        """Lets rank 1's clock be two days ahead in a first start and behind in a second one."""
        config = self.config("skew")
        job = self.started(config, _days_ahead)
        job.signal(signal.SIGTERM, 0)
        job.wait()
        equal = self.equal(config, Job(config, 2, _days_behind).wait())
        return Outcome("clock of one rank two days ahead, then behind", "", None, equal)

    def other_data(self) -> Outcome:
        """Lets rank 1 see other shards under the same relative path."""
        for name in ("here", "there"):
            (self.folder / name).mkdir()
            shutil.copytree(self.folder / "data" / "pairs-train", self.folder / name / "pairs")
        sorted((self.folder / "there" / "pairs").glob("*.tar"))[-1].unlink()
        config = self.config("other data")
        there = {
            name: dataclasses.replace(source, shards="pairs")
            for name, source in config.data.sources.items()
            if source.kind != "text"
        }
        config = config.with_sources(config.data.sources | there)
        begun = time.monotonic()
        job = Job(config, 2, _InFolder(self.folder))
        job.wait()
        return Outcome("a rank whose data differ", _last(job), time.monotonic() - begun, None)

    def _ended(
        self, fault: str, config: Config, inject: Callable[[Job], None], statuses: list[int] | None = None
    ) -> Outcome:
        """Injects a fault that ends the run, with certain statuses or any, and goes on."""
        job = self.started(config)
        begun = time.monotonic()
        inject(job)
        found = job.wait()
        assert statuses in (None, found), (found, job.said())
        seconds = time.monotonic() - begun
        return Outcome(fault, _last(job), seconds, self.goes_on(config))


def every_fault(gauntlet: Gauntlet) -> Iterator[Outcome]:
    """Injects all of them in turn."""
    yield gauntlet.kills()
    yield from gauntlet.killed_ranks()
    yield from gauntlet.hangs()
    yield from gauntlet.signals()
    yield gauntlet.full_disk()
    yield from gauntlet.damaged()
    yield gauntlet.unwritable()
    yield gauntlet.two_runs()
    yield gauntlet.skewed_clock()
    yield gauntlet.other_data()


@dataclass(frozen=True)
class _InFolder:
    """Gives each rank a working directory of its own."""

    folder: Path

    def __call__(self, rank: int) -> None:
        import os

        os.chdir(self.folder / ("there" if rank else "here"))


def _last(job: Job) -> str:
    """Returns the one line that says why a run ended: its error, or what it logged last."""
    errors = job.errors()
    assert len(errors) <= 1 and "Traceback" not in job.said(), job.said()
    return (
        errors[0]
        if errors
        else [line for line in job.said(0).splitlines() if "] " in line][-1].partition("] ")[2]
    )


def _write_slowly(rank: int) -> None:
    """Keeps a checkpoint unfinished for some time."""
    from flava_ds.checkpoints.saver import Saver

    write = Saver._write

    def slowly(self, staged, contents):
        for name, content in contents.items():
            write(self, staged, {name: content})
            time.sleep(0.1)
        write(self, staged, contents)

    Saver._write = slowly


def _limit_files(rank: int) -> None:
    """Lets no file grow beyond 64 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


def _shift_clock(days: float) -> None:
    real = time.time
    time.time = lambda: real() + days * 86400


def _days_ahead(rank: int) -> None:
    if rank:
        _shift_clock(2)


def _days_behind(rank: int) -> None:
    if rank:
        _shift_clock(-2)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut short": _cut,
    "with one bit flipped": _flip,
    "missing": Path.unlink,
}
