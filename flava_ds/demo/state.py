"""A demo's folder: which run is resumed, decisions made in it, and the duration of each phase."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flava_ds.config import to_dict
from flava_ds.demo.works import WORKS, Work
from flava_ds.recipes import resolve
from flava_ds.storage.atomic import hold, write_json

STATE = "demo_state.json"
SUMMARY = "demo.json"
"""Written at the very end, so a run that has it is finished."""
LOCK = "demo.lock"
SAVE_EVERY_S = 5.0
"""Seconds between records of a running phase's duration: a killed demo loses no more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line requests."""

    work: str | None
    """A name of WORKS; None if `minutes` decides."""
    minutes: float | None = None
    train_codebook: bool = False
    """Train a codebook instead of using the committed one."""

    @property
    def name(self) -> str:
        """Prefix of its runs' names: demo-hour, demo-7min-codebook."""
        length = self.work if self.minutes is None else f"{self.minutes:g}min"
        return f"demo-{length}" + "-codebook" * self.train_codebook

    @property
    def fixed(self) -> Work | None:
        """The work, or None if minutes decide."""
        return None if self.work is None else WORKS[self.work]

    def fingerprint(self) -> str:
        """Hashes what the result depends on, so that an unfinished run of another recipe is not resumed."""
        work = self.fixed
        recipe = to_dict(resolve("demo", list(work.overrides) if work else []))
        decided = [recipe, dataclasses.asdict(work) if work else None, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class Demo:
    """A demo in its folder. `state` is always on disk: decisions made once, and seconds per phase."""

    plan: Plan
    ranks: int
    run_path: Path
    lock: IO[bytes]
    """Held until this process ends, in whatever way."""
    state: dict[str, Any] = field(default_factory=dict)
    _saving: threading.Lock = field(default_factory=threading.Lock)

    def save(self, **decided: Any) -> None:
        """Records decisions atomically."""
        with self._saving:
            self.state |= decided
            write_json(self.run_path / STATE, self.state)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds to the phase's seconds while it runs, also on disk: a demo may be killed at any moment."""
        before, begun, over = self.state["phases"].get(name, 0.0), time.monotonic(), threading.Event()

        def record() -> None:
            self.save(phases=self.state["phases"] | {name: before + time.monotonic() - begun})

        def keep_recording() -> None:
            while not over.wait(SAVE_EVERY_S):
                record()

        thread = threading.Thread(target=keep_recording, name="seconds of the phase", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            record()

    def used_s(self) -> float:
        """Seconds of all phases, including those before an interruption."""
        return sum(self.state["phases"].values())

    @property
    def given_s(self) -> float:
        """Seconds that the plan gives; a fixed work may take any."""
        return math.inf if self.plan.minutes is None else 60 * self.plan.minutes

    def left_s(self) -> float:
        """Seconds until the minutes are over."""
        return self.given_s - self.used_s()

    @property
    def total_steps(self) -> int:
        """Steps of the work, or those that fit into the minutes."""
        return self.plan.fixed.total_steps if self.plan.fixed else self.state["total_steps"]

    def overrides(self, name: str, run_directory: Path) -> list[str]:
        """Command-line options of this demo's launches, on top of the recipe."""
        words = [
            "--name",
            name,
            "--logging.run-directory",
            str(run_directory),
            "--training.precision",
            self.state["precision"],
        ]
        if self.plan.train_codebook:
            words += ["--codebook-weights", str(self.codebook)]
        return words + list(self.plan.fixed.overrides if self.plan.fixed else ())

    @property
    def codebook(self) -> Path:
        """Path of its own codebook."""
        return self.run_path / "codebook.safetensors"


def open_demo(plan: Plan, ranks: int, *, new: bool) -> Demo:
    """Resumes the latest unfinished run of this plan that no process uses, or starts a new one."""
    runs = Path("runs")
    made = sorted(runs.glob(f"{plan.name}*/{STATE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    fingerprint = plan.fingerprint()
    for path in made if not new else ():
        state = json.loads(path.read_text(encoding="utf-8"))
        if state.get("fingerprint") != fingerprint or (path.parent / SUMMARY).exists():
            continue
        if lock := _hold(path.parent):
            demo = Demo(plan=plan, ranks=ranks, run_path=path.parent, lock=lock, state=state)
            demo.save(interruptions=state.get("interruptions", 0) + 1)
            return demo
    number = 1
    while (path := runs / (plan.name if number == 1 else f"{plan.name}-{number}")).exists():
        number += 1
    path.mkdir(parents=True)
    demo = Demo(plan=plan, ranks=ranks, run_path=path, lock=hold(path / LOCK))
    demo.save(fingerprint=fingerprint, interruptions=0, phases={})
    return demo


def _hold(run_path: Path) -> IO[bytes] | None:
    """Locks a run's folder for this process; returns None if another one uses it."""
    try:
        return hold(run_path / LOCK)
    except BlockingIOError:
        return None
