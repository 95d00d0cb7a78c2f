"""Profiles single steps: operator traces and memory snapshots, in the run's profile/ folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.errors import ConfigError
from flava_ds.ranks.distributed import World, log
from flava_ds.training.watcher import Watcher

MOST_EVENTS = 200_000
"""Allocations that a memory snapshot records."""


def check_device(config: Config, device: torch.device) -> None:
    """Raises ConfigError if a memory snapshot is requested of a device that has none."""
    if config.logging.memory_snapshot_step is not None and device.type != "cuda":
        raise ConfigError(
            f"logging.memory_snapshot_step is {config.logging.memory_snapshot_step}, but there is no CUDA "
            "device, and only a CUDA allocator records a history; leave it out and see peak_memory_gib in "
            "the log"
        )


class StepProfiler(Watcher):
    """Profiles the steps that logging.profile_steps and logging.memory_snapshot_step name."""

    def __init__(
        self,
        config: Config,
        world: World,
        first_step: int,
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Logs if the run starts after the steps to profile. Files are written inside `paused`.

        Raises: ConfigError, see check_device.
        """
        check_device(config, world.device)
        self.folder, self.world, self.paused = config.run_path / "profile", world, paused
        self.snapshot_step = config.logging.memory_snapshot_step
        window = config.logging.profile_steps
        self.steps = (
            range(window[0], min(sum(window), config.training.total_steps))
            if window is not None
            else range(0)
        )
        self.traces = bool(self.steps) and (world.is_main or config.logging.profile_all_ranks)
        self._profile: profile | None = None
        if world.is_main and window is not None and first_step > window[0]:
            told = "logging.profile_steps starts at step %d, but this run resumes at step %d: "
            log.warning(told + "nothing will be profiled", window[0], first_step)
        if world.is_main and window is not None and not self.steps:
            log.warning(
                "logging.profile_steps starts at step %d, but the run has %d steps",
                window[0],
                config.training.total_steps,
            )

    @contextmanager
    def around(self, step: int, batch: Batch) -> Iterator[None]:
        """Profiles a step if it was asked for."""
        if self.traces and step == self.steps[0]:
            cuda = [ProfilerActivity.CUDA] if self.world.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profile.start()
        if step == self.snapshot_step:
            torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)
        yield
        if step == self.snapshot_step:
            with self.paused():
                self._say(write_snapshot(self.folder, self.world, step), "pytorch.org/memory_viz")
            torch.cuda.memory._record_memory_history(enabled=None)
        if self._profile is not None and step == self.steps[-1]:
            self.close(step)

    def on_end(self, steps: int, *, stopped: bool) -> None:
        self.close(steps - 1)

    def close(self, last_step: int) -> None:
        """Writes the trace of the steps profiled so far, if any."""
        if self._profile is None:
            return
        path = self.folder / f"trace_steps_{self.steps[0]}-{last_step}_rank_{self.world.rank}.json.gz"
        with self.paused():
            self._profile.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(path))
        self._profile = None
        self._say(path, "ui.perfetto.dev")

    def _say(self, path: Path, viewer: str) -> None:
        log.info("wrote %s; open it at https://%s", path, viewer)


def write_snapshot(folder: Path, world: World, step: int) -> Path:
    """Writes the allocator's contents, with its history if recorded. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"memory_step_{step}_rank_{world.rank}.pickle"
    torch.cuda.memory._dump_snapshot(str(path))
    return path
