"""Writes checkpoints in the background: copies the state to host memory after a step; a thread writes it.

Every rank writes its own fragments. Its progress travels with the numbers that all ranks exchange at every
step anyway, so the thread never takes part in a collective. Rank 0 publishes when all ranks have written.
Until then, `latest` names the previous checkpoint.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from flava_ds import config as configuration
from flava_ds.checkpoints import files
from flava_ds.checkpoints.contents import optimizer_name, weights_name
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import good_checkpoints, tensor_name
from flava_ds.config import Config
from flava_ds.errors import CheckpointError
from flava_ds.ranks import run_lock
from flava_ds.ranks.distributed import gather_numbers, log, raise_together
from flava_ds.storage.tensor_files import HashingWriter, write_tensors
from flava_ds.training import fragments
from flava_ds.training.engine import Engine

POLL_S = 0.02
"""Pause between polls of the writer thread."""
WAIT_WORTH_WORDS_S = 0.5
"""A save that waited less than this for the previous one does not mention it."""


class Status(IntEnum):
    """The progress of a rank's part of a save."""

    IDLE = 0
    WORKING = 1
    WRITTEN = 2
    PUBLISHED = 3
    FAILED = 4


class Saver:
    """Saves one checkpoint at a time. All ranks call its methods together.

    `published` is the step of the last complete checkpoint.
    """

    def __init__(self, engine: Engine, config: Config, first_step: int = 0) -> None:
        self.engine, self.config, self.world = engine, config, engine.world
        self.place = files.place_of(config.run_path, config)
        self.published = first_step
        self._task: _Task | None = None
        self._step, self._begun, self._stall_s = 0, 0.0, 0.0
        self._seen = files.Seen()
        self._host = HostCopy(engine.world.device.type == "cuda")

    @property
    def status(self) -> Status:
        """The progress that this rank reports to the others."""
        return Status.IDLE if self._task is None else self._task.status

    def save(
        self,
        step: int,
        data_state: dict[str, Any],
        metric: dict[str, Any] | None = None,
        spikes: dict[str, Any] | None = None,
    ) -> Place:
        """Copies the state after `step` updates and starts to write it; returns the checkpoint's final place.

        Waits for the previous save first if that is still running and, unless checkpoint.asynchronous is set,
        until this one is done.

        Raises: CheckpointError on every rank when one rank cannot write, or rank 0 does not see its files.
        """
        self._begun = time.perf_counter()
        if self._task is not None:
            unfinished = self._step
            self.finish()
            waited = time.perf_counter() - self._begun
            if self.world.is_main and waited >= WAIT_WORTH_WORDS_S:
                log.warning(
                    "step %d waited %.1f s until the checkpoint of step %d was written; save less often",
                    step,
                    waited,
                    unfinished,
                )
        if self.world.is_main and not self._step and (extra := fragments.left_out(self.engine)):
            log.warning(
                "the optimizer also keeps %s, which checkpoints do not: a resumed run goes on without; add "
                "the names to the moments of %s",
                " and ".join(sorted(extra)),
                type(self.engine.optimizer).__name__,
            )
        self._step = step
        staged = files.staging(self.place, step, self.world.size)
        self._task = _Task(staged, Status.WRITTEN)
        try:
            contents = self._contents(step, {"data": data_state, "metric": metric, "spikes": spikes})
            self._task.begin(lambda: self._write(staged, contents))
        # out of host memory: the other ranks learn of it at the next step
        except RuntimeError as problem:
            self._task.fail(problem)
        self._stall_s = time.perf_counter() - self._begun
        if not self.config.checkpoint.asynchronous:
            self.finish()
        return self.place / files.name_of(step)

    def observe(self, statuses: list[int]) -> None:
        """Acts on the statuses that all ranks have just exchanged.

        Raises: CheckpointError on every rank when one rank failed.
        """
        task = self._task
        if task is not None and Status.FAILED in statuses:
            self._task = None
            task.join()  # ends this rank's writes before _clear_away deletes what they wrote
            try:
                raise_together(self.world, task.error)
            finally:
                self._clear_away()
        elif statuses[0] == Status.PUBLISHED:  # only rank 0 publishes
            self._task, self.published = None, self._step
        elif self.world.is_main and all(status == Status.WRITTEN for status in statuses):
            self._task = _Task(self.place / files.name_of(self._step), Status.PUBLISHED)
            self._task.begin(self._publish)

    def finish(self) -> None:
        """Waits until the save in progress is published.

        Raises: CheckpointError on every rank when one rank failed.
        """
        while self._task is not None:
            self.observe([status for (status,) in gather_numbers(self.world, [self.status])])
            if self.status == Status.WORKING:
                self._task.join(POLL_S)
            elif self._task is not None:
                # this rank is done and waits for the others; the exchange of statuses paces the loop
                time.sleep(POLL_S / 4)

    def _clear_away(self) -> None:
        """Removes what a failed save has written, so that it does not fill the disk."""
        if self.world.is_main and run_lock.lost() is None:
            with suppress(OSError):
                files.remove_leftovers(self.place)

    def _contents(self, step: int, told: dict[str, Any]) -> dict[str, Any]:
        """Collects this rank's files: name -> text, or (tensors, first elements).

        An asynchronous save gets copies of the tensors, because training changes them meanwhile.
        """
        rank = self.world.rank
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        starts: dict[str, dict[str, int]] = {"weights": {}, "moments": {}}
        for fragment in fragments.owned(self.engine):
            for key, tensor in fragment.tensors.items():
                name = tensor_name(key, fragment.name)
                kind = "weights" if key == "weight" else "moments"
                starts[kind][name] = fragment.start
                (weights if kind == "weights" else moments)[name] = tensor
        buffers = _persistent_buffers(self.engine) if self.world.is_main else {}
        weights |= {f"buffer/{name}": buffer for name, buffer in buffers.items()}
        moments |= {f"generator/{name}": state for name, state in generator_states(self.world.device).items()}
        if self.world.is_main:
            moments |= {f"state/{name}": tensor for name, tensor in self.engine.state_tensors().items()}
        if self.config.checkpoint.asynchronous:
            weights, moments = self._host.take("weights", weights), self._host.take("moments", moments)
        contents: dict[str, Any] = {
            weights_name(rank): (weights, starts["weights"]),
            optimizer_name(rank): (moments, starts["moments"]),
        }
        if self.world.is_main:
            state = {"step": step, "world_size": self.world.size, "layout": self.engine.layout()}
            state |= self.engine.counters()
            state["optimizer_updates"] = fragments.update_counts(self.engine)
            state |= {"parameters": self.engine.shapes(), "buffers": list(buffers), **told}
            state["frozen"] = self.engine.module.fingerprints
            contents |= {
                files.STATE: json.dumps(state, indent=1) + "\n",
                files.CONFIG: configuration.dumps(self.config),
            }
        return contents

    def _write(self, staged: Place, contents: Mapping[str, Any]) -> None:
        """Writes this rank's files, then a receipt with their checksums; runs in a thread."""
        described: dict[str, Any] = {}
        if self.world.is_main and staged.has(files.MANIFEST):
            # an unpublished or abandoned checkpoint of this step in object storage: no longer complete
            staged.remove(files.MANIFEST)
        for name, content in contents.items():
            with staged.create(name) as file:
                writer = HashingWriter(file)
                if isinstance(content, str):
                    writer.write(content.encode())
                else:
                    tensors, starts = content
                    write_tensors(writer, tensors, {"format": "flava_ds", "starts": json.dumps(starts)})
            described[name] = writer.described()
        staged.write(_receipt_name(self.world.rank), json.dumps(described))

    def _publish(self) -> None:
        """Collects the receipts of all ranks and publishes the checkpoint; runs in a thread of rank 0."""
        staged = files.staging(self.place, self._step, self.world.size)
        described: dict[str, Any] = {}
        if (lost := run_lock.lost()) is not None:
            raise CheckpointError(
                f"{lost} was taken over by another run while this one was unresponsive, or its lock.json is "
                "deleted; this one ends"
            )
        for rank in range(self.world.size):
            try:
                described |= json.loads(staged.read(_receipt_name(rank)))
            except FileNotFoundError as error:
                directory = self.config.checkpoint.directory
                where = "checkpoint.directory" if directory else "logging.run_directory"
                raise CheckpointError(
                    f"{staged}: rank 0 does not see what rank {rank} wrote; {where} must be on a file "
                    "system that all ranks share"
                ) from error
            staged.remove(_receipt_name(rank))
        final = files.publish(self.place, staged, self._step, described)
        self._seen.forget([final.name])  # it may replace one from before a rollback
        training = self.config.training
        judged = training.spike_factor or training.max_rollbacks
        good = next(good_checkpoints(self.place, self._seen), None) if judged else None
        gone = files.prune(self.place, self.config.checkpoint, good.name if good else None, self._seen)
        gib = sum(entry["size"] for entry in described.values()) / 2**30
        took = time.perf_counter() - self._begun
        stood = self._stall_s if self.config.checkpoint.asynchronous else took
        log.info(
            "saved %s: training paused for %.2f s, %.2f GiB were written within %.1f s%s",
            final,
            stood,
            gib,
            took,
            _deleted(gone),
        )


class _Task:
    """A function that runs in a thread. Its `status` is WORKING, then `done`, or FAILED with an `error`."""

    def __init__(self, where: Place, done: Status) -> None:
        self.where, self._done = where, done
        self.status = Status.WORKING
        self.error: CheckpointError | None = None
        self._thread: threading.Thread | None = None

    def begin(self, function: Callable[[], None]) -> None:
        """Starts a daemon thread, which does not keep the process alive."""
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint", daemon=True)
        self._thread.start()

    def fail(self, problem: Exception) -> None:
        """Records the failure as a CheckpointError that names the place."""
        kind, said = type(problem).__name__, (str(problem).splitlines() or [""])[0][:300]
        if isinstance(problem, CheckpointError):
            self.error = problem
        elif isinstance(problem, OSError):
            mend = "check the storage and the network"
            if self.where.local is not None:
                mend = "make room or mend the disk"
            self.error = CheckpointError(
                f"{self.where} cannot be written ({said or kind}); {mend}, then start the same command again"
            )
        else:  # a bug, or no memory for the copies: no disk is to blame
            what = ": ".join(filter(None, (kind, said)))
            self.error = CheckpointError(
                f"{self.where} was not written ({what}); run again with --debug for the traceback"
            )
            self.error.__cause__ = problem
        self.status = Status.FAILED

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the thread."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
            self.status = self._done
        except Exception as problem:  # any failure must reach the other ranks
            self.fail(problem)


class HostCopy:
    """Copies tensors to host memory that the next copy reuses: allocating costs more than copying.

    `pinned` is for tensors on a GPU.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._kept: dict[str, dict[str, Tensor]] = {}

    def take(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies a group of tensors and waits for the device; overwrites the group's previous copies."""
        kept = self._kept.get(group, {})
        copies = {}
        for name, tensor in tensors.items():
            copy = kept.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
            copies[name] = copy.copy_(tensor, non_blocking=True)
        if self._pinned:
            torch.cuda.synchronize()  # the copies are asynchronous, and the next step changes the sources
        self._kept[group] = copies
        return copies


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Returns this rank's random states, for code that draws from the global generators.

    Whatever is drawn per sample or step is a function of the step and needs none.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _persistent_buffers(engine: Engine) -> dict[str, Tensor]:
    """Returns the buffers in the model's state dict."""
    persistent = engine.module.state_dict().keys()
    return {name: buffer for name, buffer in engine.module.named_buffers() if name in persistent}


def _receipt_name(rank: int) -> str:
    return f"written_{rank:05d}.json"


def _deleted(names: list[str]) -> str:
    return f"; deleted {', '.join(names)}" if names else ""
