"""Remedies for a step that runs out of memory: settings that save memory, cheapest first."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.errors import ConfigError, DeviceMemoryError
from flava_ds.ranks.distributed import World
from flava_ds.training.engine_config import merged_settings, offloads, shipped_settings, zero_stage
from flava_ds.training.watcher import Watcher
from flava_ds.watching.profiling import write_snapshot

MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "not enough memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Messages of a plain RuntimeError when memory outside of torch's allocator, or the host's, is used up."""


class MemoryWatch(Watcher):
    """Explains the error of a step that runs out of memory."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world

    def around(self, step: int, batch: Batch) -> AbstractContextManager[None]:
        during = f"in step {step}, of {batch.kind} batches from '{batch.source}'"
        return explained(self.config, self.world, during, step, batch.source)


@contextmanager
def explained(
    config: Config, world: World, during: str, step: int = 0, source: str | None = None
) -> Iterator[None]:
    """Turns running out of memory inside `with` into one line that names the settings to change.

    On a GPU it also writes a memory snapshot.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError among them
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            words in str(error) for words in MEMORY_WORDS
        ):
            raise
        where = f"rank {world.rank} on {socket.gethostname()} ran out of memory {during}"
        said = str(error).splitlines()[0].rstrip(".") if str(error) else "no details"
        snapshot = ""
        if world.device.type == "cuda":
            snapshot = (
                f"; the memory's contents are in {write_snapshot(config.run_path / 'profile', world, step)} "
                "(open it at https://pytorch.org/memory_viz)"
            )
        ways = remedies(config, world, source)
        listed = "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1))
        raise DeviceMemoryError(f"{where} ({said}). Try, in this order: {listed}{snapshot}") from error


def remedies(config: Config, world: World, source: str | None) -> list[str]:
    """Lists settings and their current values: those that keep results first, cheapest first.

    `source` is the one whose batch ran out of memory; None if that happened before the first step.
    """
    settings = merged_settings(config, world.size, world.device.type)
    stage, now = zero_stage(settings), config.engine.deepspeed_config
    offloaded = offloads(settings["zero_optimization"], "offload_optimizer")
    found = []
    if source in config.data.sources:
        found += smaller_micro_batch(config, world, source)
        if not config.training.activation_checkpointing:
            if not config.training.recompute_gelu:
                found.append(
                    "--training.recompute-gelu (now off): a quarter less memory for activations, same results"
                )
            found.append(
                "--training.activation-checkpointing (now off): a third more computation, same results"
            )
    if stage < 3 and world.size > 1:
        more = " or ".join(f"zero{n}" for n in range(stage + 1, 4))
        found.append(
            f"--engine.deepspeed-config {more} (now {now}): optimizer state, then gradients, then "
            f"weights divided among the {world.size} ranks"
        )
    if not offloaded and (offload := f"zero{max(1, stage)}_offload") in shipped_settings():
        found.append(
            f"--engine.deepspeed-config {offload} (now {now}): optimizer state in host memory, slower updates"
        )
    return [*found, "more ranks, or a smaller training.global_batch_size or model, which change results"]


def smaller_micro_batch(config: Config, world: World, source: str) -> list[str]:
    """Returns the next larger number of accumulation steps that divides every source's batch.

    It is formatted as a setting; empty if micro-batches cannot be smaller.
    """
    steps = config.training.gradient_accumulation_steps
    size = config.micro_batch_size(source, world.size)
    for more in range(2 * steps, size * steps + 1, steps):
        changed = dataclasses.replace(
            config, training=dataclasses.replace(config.training, gradient_accumulation_steps=more)
        )
        try:
            smaller = [changed.micro_batch_size(name, world.size) for name in config.drawn_sources]
        except ConfigError:
            continue
        if smaller:
            mine = changed.micro_batch_size(source, world.size)
            return [
                (
                    f"--training.gradient-accumulation-steps {more} (now {steps}): micro-batches of {mine} "
                    f"instead of {size}, the same global batch and losses"
                )
            ]
    return []
