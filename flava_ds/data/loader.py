"""Optimizer steps to batches: which samples a rank reads is arithmetic on the step, so runs resume anywhere
and on any number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.lanes import LanePositions
from flava_ds.data.prefetch import largest_batch, prefetch_batches
from flava_ds.data.quarantine import Quarantine
from flava_ds.data.reader import BatchReader
from flava_ds.data.round_robin import RoundRobin, weight_stages
from flava_ds.data.samples import Sample
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.slots import SlotPool
from flava_ds.data.sources import Lane, open_source
from flava_ds.data.workers import start_worker, watched
from flava_ds.errors import CheckpointError, ConfigError, UserError
from flava_ds.storage.faults import SampleFault

log = logging.getLogger(__name__)


MOVED_LANES = (
    "source '%s' is a stream that was read by %s and is read by %s: what was left of its epoch comes in "
    "another order, some of it twice, some not at all"
)


class Request(NamedTuple):
    """What one rank reads for one micro-step: `count` samples from `position` on, of the source's endless
    stream or of one lane's.
    """

    source: str
    position: int
    count: int
    lane: int = 0


class StepLoader:
    """Yields, for every optimizer step from start_step on, the rank's micro-batches: a list of
    gradient_accumulation_steps batches of one source.

    `jumps` are (step, n): from that step on, until the next one, step s draws what step s + n would. A run
    that diverged jumps the data that it met then; everything else about a step stays a function of the step.

    Step s reads positions draws_before(source, s) * global_batch .. + global_batch of its source's stream.
    Micro-step m of rank r takes slice m * world_size + r of them, so every split of the same global batch
    covers the same samples in the same order. A source without elastic order is read by lanes instead: each
    loader process of each rank has a stream of its own, and a position in it that follows from the step
    (`LanePositions`).
    """

    def __init__(
        self,
        config: Config,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        *,
        pin_memory: bool = False,
    ) -> None:
        """Indexes the sources that some step draws.

        Raises: ConfigError when a global batch does not divide; DataError when a source is missing or has no
        usable sample.
        """
        if not config.data.sources:
            raise ConfigError("data.sources is empty: a run needs at least one source")
        self.config, self.rank, self.world_size, self.start_step, self.pin_memory = (
            config,
            rank,
            world_size,
            start_step,
            pin_memory,
        )
        self.quarantine: Quarantine | None = None
        self.jumps: list[tuple[int, int]] = []
        self.micro_batch_sizes = {
            name: config.micro_batch_size(name, world_size) for name in config.drawn_sources
        }
        self.prefetch_batches = prefetch_batches(config, self.micro_batch_sizes)
        self.sources = {name: open_source(config, name) for name in config.drawn_sources}
        self.stages = weight_stages(
            config.data, {name: source.length for name, source in self.sources.items()}
        )
        seeds = {name: source.seed for name, source in self.sources.items()}
        self.round_robin = RoundRobin(self.stages, seeds, config.data.block_steps, config.seed)
        lane, micro_steps = (
            Lane(rank=rank, ranks=world_size, each=max(1, config.data.num_workers)),
            config.training.gradient_accumulation_steps,
        )
        self.lanes = LanePositions(self.round_robin, self.micro_batch_sizes, micro_steps, lane.each)
        self.readers = {name: BatchReader(config, source, lane) for name, source in self.sources.items()}
        for source in self.sources.values() if rank == 0 else ():
            for line in source.notes(lane):
                log.warning(line)

    def __len__(self) -> int:
        return max(0, self.config.training.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Batch]]:
        workers, slots = self.config.data.num_workers, self._slots()
        loader = DataLoader(
            _Requests(self.readers, slots),
            batch_size=None,
            sampler=_Schedule(self, slots),
            num_workers=workers,
            prefetch_factor=self.prefetch_batches if workers else None,
            pin_memory=self.pin_memory,
            collate_fn=_same,
            worker_init_fn=start_worker,
            timeout=self.config.data.worker_timeout_s if workers else 0,
            generator=torch.Generator(),
        )
        step, micro_batches = self.start_step, []
        for result in watched(loader):
            if self.quarantine is not None:
                self.quarantine.add(step, unusable_in(result))
            if isinstance(result, UserError):
                raise result
            micro_batches.append(result)
            if len(micro_batches) == self.config.training.gradient_accumulation_steps:
                yield micro_batches
                step, micro_batches = step + 1, []

    def go_back(self, step: int, failed: int) -> None:
        """Begins again at `step`, whose data will be those that step `failed` would have drawn."""
        unseen = self._drawn(failed)
        self.jumps = [(first, n) for first, n in self.jumps if first < step] + [(step, unseen - step)]
        self.start_step = step

    def requests(self, step: int) -> list[Request]:
        """Returns what this rank reads at a step, one entry per micro-step."""
        source = self.round_robin.source_at(self._drawn(step))
        size = self.micro_batch_sizes[source]
        micro_steps = range(self.config.training.gradient_accumulation_steps)
        if not self.sources[source].promises.elastic:
            placed = (self.lanes.place(source, self._drawn(step), micro) for micro in micro_steps)
            return [Request(source, position, size, lane) for lane, position in placed]
        first = self._position(source, step)
        return [
            Request(source, first + (micro * self.world_size + self.rank) * size, size)
            for micro in micro_steps
        ]

    def state(self, step: int) -> dict[str, dict[str, Any]]:
        """Returns where each source's stream stands before `step`, and what fixes the order of the data;
        plain JSON types.

        Neither ranks nor workers nor accumulation are in it where they do not change the order; of a source
        without elastic order, "lanes" is.
        """
        return {
            name: {
                **self._place(name, step),
                **source.state(),
                "source_seed": source.seed,
                "weight": ", ".join(f"{share[name]} from step {first}" for first, share in self.stages),
                "global_batch_size": self.config.global_batch_size(name),
                "seed": self.config.seed,
                "block_steps": self.config.data.block_steps,
                "jumps": [list(jump) for jump in self.jumps],
            }
            for name, source in self.sources.items()
        }

    def progress(self, step: int) -> dict[str, float]:
        """Returns how far the sources are after `step` steps: each one's share of the steps, the share by its
        weight, and its epochs.
        """
        found, drawn = {}, self._drawn(step)
        for name, source in self.sources.items():
            found[f"source_share/{name}"] = self.round_robin.draws_before(name, drawn) / max(1, drawn)
            found[f"source_target/{name}"] = self._target(name, drawn) / max(1, drawn)
            if source.length is not None:
                found[f"epoch/{name}"] = self._position(name, step) / source.length
        return found

    def check_state(self, saved: dict[str, dict[str, Any]]) -> None:
        """Compares a saved state with this loader and takes over its jumps.

        Raises: CheckpointError naming every difference that would change the order of the data.
        """
        saved = {name: _renamed(state) for name, state in saved.items()}
        self.jumps = [tuple(jump) for jump in next(iter(saved.values()), {}).get("jumps", [])]
        current = self.state(self.start_step)
        differences = [f"source '{name}' is gone" for name in saved if name not in current]
        differences += [f"source '{name}' is new" for name in current if name not in saved]
        for name in (name for name in current if name in saved):
            for field, value in current[name].items():
                if field == "lanes" and saved[name].get(field) not in (None, value):
                    log.warning(MOVED_LANES, name, saved[name][field], value)
                elif field not in ("epoch", "position", "lanes") and saved[name].get(field) != value:
                    kept = (
                        f" (--data.sources.{name}.seed {saved[name].get(field)} keeps it)"
                        if field == "source_seed"
                        else ""
                    )
                    differences.append(
                        f"source '{name}': {field} was {saved[name].get(field)}{kept}, is {value}"
                    )
        if differences:
            raise CheckpointError(
                "the data order would change on resume: "
                + "; ".join(differences)
                + ". Restore these settings, or start a new run from the weights alone"
            )

    def _slots(self) -> SlotPool | None:
        """Reserves memory for the batches that are kept ready and for those that the trainer holds: the step
        it is at, and the one that it receives.
        """
        data = self.config.data
        if not data.num_workers:
            return None
        held = 2 * self.config.training.gradient_accumulation_steps + 1
        largest, _ = largest_batch(self.config, self.micro_batch_sizes)
        return SlotPool(data.num_workers, self.prefetch_batches + -(-held // data.num_workers), largest)

    def _target(self, source: str, step: int) -> float:
        """Returns how many of the first steps would draw a source if its weights were met exactly."""
        firsts = [min(first, step) for first, _ in self.stages] + [step]
        return float(
            sum(
                (after - first) * shares[source]
                for first, after, (_, shares) in zip(firsts, firsts[1:], self.stages, strict=False)
            )
        )

    def _drawn(self, step: int) -> int:
        """Returns how many steps' data have been drawn or jumped before a step."""
        return step + next((n for first, n in reversed(self.jumps) if first <= step), 0)

    def _place(self, name: str, step: int) -> dict[str, Any]:
        """Returns where a source's stream stands: epoch and position where an epoch's length is known; else
        the samples drawn, and the lanes.
        """
        position, source = self._position(name, step), self.sources[name]
        place = (
            {"epoch": None, "position": position}
            if source.length is None
            else dict(zip(("epoch", "position"), divmod(position, source.length), strict=True))
        )
        if not source.promises.elastic:
            place["lanes"] = (
                f"{self.world_size} ranks x {self.lanes.lanes} loader processes x "
                f"{self.lanes.micro_steps} micro-steps"
            )
        return place

    def _position(self, source: str, step: int) -> int:
        """Returns how many samples of a source all ranks have read or jumped before a step."""
        return self.round_robin.draws_before(source, self._drawn(step)) * self.config.global_batch_size(
            source
        )


def iterate_once(config: Config, name: str, batch_size: int = 64) -> Iterator[list[Sample]]:
    """Yields every usable sample of source `name` once, in the order of the shards, decoded but not
    augmented, with all its captions and its .json.

    Raises: DataError when the share of unusable samples exceeds the source's limit.
    """
    source = IndexedShards(config, name, metadata=True)
    skips, samples = SkipLog(name, source.source.max_skipped_share), []
    for index in range(len(source)):
        try:
            samples.append(source.decode(source.read(index), index, 0, draw=0.0))
            skips.good()
        except SampleFault as fault:
            skips.bad(source.describe(index), fault)
        if len(samples) == batch_size:
            yield samples
            samples = []
    if samples:
        yield samples


def unusable_in(result: Batch | UserError) -> tuple[dict[str, Any], ...]:
    """Returns the unusable samples that were met before a batch, or the error in its place, was made."""
    return result.read.unusable if isinstance(result, Batch) else result.unusable


class _Requests(Dataset):
    """Turns requests into batches, in a loader process or in place. A user's error comes back as a value, so
    that it arrives as one line.
    """

    def __init__(self, readers: dict[str, BatchReader], slots: SlotPool | None) -> None:
        self.readers, self.slots = readers, slots

    def __getitem__(self, assigned: tuple[Request, int | None]) -> Batch | UserError:
        request, number = assigned
        reader, positions = (
            self.readers[request.source],
            np.arange(request.position, request.position + request.count),
        )
        try:
            if number is None:
                return reader.batch(positions, lane=request.lane)
            slot = self.slots.open(number)
            return reader.batch(positions, slot.empty, request.lane).each(slot.put)
        except UserError as error:
            told = type(error)(str(error))
            told.unusable = reader.skips.take()
            return told


class _Schedule(Sampler):
    """Yields a loader's requests in order of steps and micro-steps, each with the number of the slot for its
    batch.

    torch hands them to its loader processes in turn.
    """

    def __init__(self, loader: StepLoader, slots: SlotPool | None) -> None:
        self.loader, self.slots = loader, slots

    def __iter__(self) -> Iterator[tuple[Request, int | None]]:
        steps = range(self.loader.start_step, self.loader.config.training.total_steps)
        for number, request in enumerate(request for step in steps for request in self.loader.requests(step)):
            yield (
                request,
                None if self.slots is None else self.slots.take(number % self.loader.config.data.num_workers),
            )


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a source's saved state with the number that it had in earlier versions under today's name: its
    number was its seed.
    """
    return {("source_seed" if field == "number" else field): value for field, value in state.items()}


def _same(value: Any) -> Any:
    """Stands in for torch's conversion of what the data set returns."""
    return value
