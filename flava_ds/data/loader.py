"""Batches for optimizer steps. A step's samples follow from its number, so runs resume on any ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.lanes import LanePositions
from flava_ds.data.prefetch import largest_batch, prefetch_batches
from flava_ds.data.quarantine import Quarantine
from flava_ds.data.reader import BatchReader
from flava_ds.data.round_robin import RoundRobin, steps_of, weight_stages
from flava_ds.data.saved_state import compare_states, listed
from flava_ds.data.slots import SlotPool
from flava_ds.data.sources import Lane, open_source
from flava_ds.data.workers import start_worker, watched
from flava_ds.errors import ConfigError, UserError

log = logging.getLogger(__name__)


COUNTED_STEPS = 4096
"""Most steps whose draws are counted ahead; the schedule of a million takes seconds."""


class Request(NamedTuple):
    """One rank's read for one micro-step: `size` samples from `position` of a source's or lane's stream."""

    source: str
    position: int
    size: int
    lane: int = 0


class StepLoader:
    """Yields this rank's micro-batches for every optimizer step from start_step on.

    Each item is a list of gradient_accumulation_steps batches of one source.

    Step s reads positions draws_before(source, s) * global_batch .. + global_batch of its source's stream.
    Micro-step m of rank r takes slice m * world_size + r of them, so every split of the same global batch
    covers the same samples in the same order. A source without elastic order is read by lanes instead: each
    dataloader worker of each rank has its own stream, and its position follows from the step
    (`LanePositions`).

    `jumps` are pairs (step, n): from that step until the next jump, step s draws the data of step s + n. A
    run that diverged jumps over the data that it met then; apart from that, the data is a function of the
    step.
    """

    def __init__(
        self,
        config: Config,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        *,
        pin_memory: bool = False,
        tables: Mapping[str, Path] | None = None,
    ) -> None:
        """Opens the sources that at least one step draws. `tables` are those that prepare_source has stored
        on this machine; other sources are indexed.

        Raises: ConfigError when a global batch is not divisible; DataError when a source is missing or has no
        usable sample.
        """
        if not config.data.sources:
            raise ConfigError("data.sources is empty: a run needs at least one source")
        self.config, self.rank, self.world_size = config, rank, world_size
        self.start_step, self.pin_memory = start_step, pin_memory
        self.quarantine: Quarantine | None = None
        self.jumps: list[tuple[int, int]] = []
        self.micro_batch_sizes = {
            name: config.micro_batch_size(name, world_size) for name in config.drawn_sources
        }
        self.prefetch_batches = prefetch_batches(config, self.micro_batch_sizes)
        tables = tables or {}
        self.sources = {name: open_source(config, name, tables.get(name)) for name in config.drawn_sources}
        self.stages = weight_stages(
            config.data, {name: source.length for name, source in self.sources.items()}
        )
        seeds = {name: source.seed for name, source in self.sources.items()}
        self.round_robin = RoundRobin(self.stages, seeds, config.data.block_steps, config.seed)
        lane = Lane(rank=rank, ranks=world_size, each=max(1, config.data.num_workers))
        micro_steps = config.training.gradient_accumulation_steps
        self.lanes = LanePositions(self.round_robin, self.micro_batch_sizes, micro_steps, lane.each)
        self.readers = {name: BatchReader(config, source, lane) for name, source in self.sources.items()}
        for line in self._notes(lane) if rank == 0 else ():
            log.warning(line)

    def _notes(self, lane: Lane) -> list[str]:
        """Returns what sources say at the start; what several say in the same words is one line."""
        said: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            for line in source.notes(lane):
                said.setdefault(line.removeprefix(f"source '{name}': "), []).append(f"'{name}'")
        return [
            f"source {names[0]}: {line}" if len(names) == 1 else f"sources {', '.join(names)}, each: {line}"
            for line, names in said.items()
        ]

    def __len__(self) -> int:
        return max(0, self.config.training.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Batch]]:
        workers, slots = self.config.data.num_workers, self._slots()
        loader = DataLoader(
            _Requests(self.readers, slots),
            # a request yields a whole batch, so torch must neither batch (None) nor convert it (_same)
            batch_size=None,
            sampler=_Schedule(self, slots),
            num_workers=workers,
            # Forked ones share the tables of samples and all code with their parent. Python's own default is
            # another from 3.14 on: each would have a copy.
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=self.prefetch_batches if workers else None,
            pin_memory=self.pin_memory,
            collate_fn=_same,
            worker_init_fn=start_worker,
            timeout=self.config.data.worker_timeout_s if workers else 0,
            generator=torch.Generator(),  # without one, torch would draw from the global generator
        )
        step, micro_batches = self.start_step, []
        for result in watched(loader):
            if self.quarantine is not None:  # before raising: the error may be that too many are unusable
                self.quarantine.add(step, unusable_in(result))
            if isinstance(result, UserError):
                raise result
            micro_batches.append(result)
            if len(micro_batches) == self.config.training.gradient_accumulation_steps:
                yield micro_batches
                step, micro_batches = step + 1, []

    def go_back(self, step: int, failed: int) -> None:
        """Restarts at `step`, with the data that step `failed` would have drawn."""
        unseen = self._drawn(failed)
        self.jumps = [(first, n) for first, n in self.jumps if first < step] + [(step, unseen - step)]
        self.start_step = step

    def requests(self, step: int) -> list[Request]:
        """Returns this rank's reads at a step, one request per micro-step."""
        source = self.round_robin.source_at(self._drawn(step))
        size = self.micro_batch_sizes[source]
        micro_steps = range(self.config.training.gradient_accumulation_steps)
        if not self.sources[source].promises.elastic:
            placed = (self.lanes.place(source, self._drawn(step), micro) for micro in micro_steps)
            return [Request(source, position, size, lane) for lane, position in placed]
        first = self._position(source, step)
        # slices by micro-step, then rank: the same samples for every split of the global batch
        return [
            Request(source, first + (micro * self.world_size + self.rank) * size, size)
            for micro in micro_steps
        ]

    def state(self, step: int) -> dict[str, dict[str, Any]]:
        """Returns each source's position before `step` and all that determines the data order, as plain JSON.

        Ranks, workers and accumulation are left out because they do not change the order. Sources without
        elastic order are the exception: they have "lanes".
        """
        return {
            name: {
                **self._place(name, step),
                **source.state(),
                "source_seed": source.seed,
                "weight": listed((share[name], first) for first, share in self.stages),
                "global_batch_size": self.config.global_batch_size(name),
                "seed": self.config.seed,
                "block_steps": self.config.data.block_steps,
                "jumps": [list(jump) for jump in self.jumps],
            }
            for name, source in self.sources.items()
        }

    def progress(self, step: int) -> dict[str, float]:
        """Returns the progress of the sources after `step` steps.

        That is, for each one: its share of the steps, the share that its weight asks for, and its epochs.
        """
        found, drawn = {}, self._drawn(step)
        for name, source in self.sources.items():
            found[f"source_share/{name}"] = self.round_robin.draws_before(name, drawn) / max(1, drawn)
            found[f"source_target/{name}"] = steps_of(self.stages, name, drawn) / max(1, drawn)
            if source.length is not None:
                found[f"epoch/{name}"] = self._position(name, step) / source.length
        return found

    def steps_left(self, step: int) -> dict[str, float]:
        """Returns how many of the steps from `step` to the run's end draw each source: exactly near the end,
        else by the sources' weights, which are met within a block of steps.
        """
        drawn, end = self._drawn(step), self._drawn(step) + self.config.training.total_steps - step
        if end - drawn > COUNTED_STEPS:
            counts = {name: steps_of(self.stages, name, end) for name in self.sources}
        else:
            counts = {name: self.round_robin.draws_before(name, end) for name in self.sources}
        return {name: max(0.0, n - self.round_robin.draws_before(name, drawn)) for name, n in counts.items()}

    def check_state(self, saved: dict[str, dict[str, Any]]) -> None:
        """Compares a saved state with this loader, up to the step at which it begins, and adopts its jumps.
        Weights from that step on, and sources that no step before could draw, may differ.

        Raises: CheckpointError that names every difference that would change the data or their order.
        """
        self.jumps = [tuple(jump) for jump in next(iter(saved.values()), {"jumps": ()})["jumps"]]
        drawn = self._drawn(self.start_step)  # after adopting the jumps, which are part of the state
        compare_states(saved, self.state(self.start_step), drawn, self.config.data.block_steps)

    def _slots(self) -> SlotPool | None:
        """Reserves shared memory for the prefetched batches and those that the trainer holds.

        The trainer holds the batches of its current step while it receives those of the next.
        """
        data = self.config.data
        if not data.num_workers:
            return None
        held = 2 * self.config.training.gradient_accumulation_steps + 1
        largest, _ = largest_batch(self.config, self.micro_batch_sizes)
        return SlotPool(data.num_workers, self.prefetch_batches + -(-held // data.num_workers), largest)

    def _drawn(self, step: int) -> int:
        """Returns the number of steps whose data has been drawn or jumped over before a step."""
        return step + next((n for first, n in reversed(self.jumps) if first <= step), 0)

    def _place(self, name: str, step: int) -> dict[str, Any]:
        """Returns a source's position: epoch and position within it if the length is known, or samples drawn.

        Sources without elastic order also have "lanes".
        """
        position, source = self._position(name, step), self.sources[name]
        place: dict[str, Any] = {"epoch": None, "position": position}
        if source.length is not None:
            place["epoch"], place["position"] = divmod(position, source.length)
        if not source.promises.elastic:
            place["lanes"] = (
                f"{self.world_size} ranks x {self.lanes.lanes} loader processes x "
                f"{self.lanes.micro_steps} micro-steps"
            )
        return place

    def _position(self, source: str, step: int) -> int:
        """Returns how many samples of a source all ranks have read or jumped over before a step."""
        draws = self.round_robin.draws_before(source, self._drawn(step))
        return draws * self.config.global_batch_size(source)


def unusable_in(result: Batch | UserError) -> tuple[dict[str, Any], ...]:
    """Returns the unusable samples met while a batch, or the error in its place, was made."""
    return result.read.unusable if isinstance(result, Batch) else result.unusable


class _Requests(Dataset):
    """Turns requests into batches, in a dataloader worker or in the calling process.

    Returns a UserError instead of raising it: torch would wrap it in a traceback, and it should stay one
    line.
    """

    def __init__(self, readers: dict[str, BatchReader], slots: SlotPool | None) -> None:
        self.readers, self.slots = readers, slots

    def __getitem__(self, assigned: tuple[Request, int | None]) -> Batch | UserError:
        request, number = assigned
        reader = self.readers[request.source]
        positions = np.arange(request.position, request.position + request.size)
        try:
            if number is None or self.slots is None:
                return reader.batch(positions, lane=request.lane)
            slot = self.slots.open(number)
            return reader.batch(positions, slot.empty, request.lane).each(slot.put)
        except UserError as error:
            told = type(error)(str(error))
            told.unusable = reader.skips.take()
            return told


class _Schedule(Sampler):
    """Yields requests in order of steps and micro-steps, each with the number of a slot for its batch.

    torch hands them to the workers in turn.
    """

    def __init__(self, loader: StepLoader, slots: SlotPool | None) -> None:
        self.loader, self.slots = loader, slots

    def __iter__(self) -> Iterator[tuple[Request, int | None]]:
        loader = self.loader
        steps = range(loader.start_step, loader.config.training.total_steps)
        for number, request in enumerate(request for step in steps for request in loader.requests(step)):
            worker = number % max(1, loader.config.data.num_workers)
            yield request, None if self.slots is None else self.slots.take(worker)


def _same(value: Any) -> Any:
    """Replaces torch's default collation, which would convert the batches."""
    return value
