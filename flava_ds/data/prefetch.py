"""How many batches the loader's workers keep ready, so that they fit a given memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flava_ds.config import Config, SourceConfig
from flava_ds.errors import ConfigError

log = logging.getLogger(__name__)

_LABELS = 64
"""Bytes per sample, at most, for what has one entry per sample: labels, rows, sequence ends."""


def prefetch_batches(config: Config, micro_batch_sizes: Mapping[str, int]) -> int:
    """Returns how many batches each worker keeps ready: data.prefetch_batches, or fewer, so that the largest
    of all sources fits

        workers * batches * largest batch <= data.prefetch_mib

    `micro_batch_sizes` are the samples of each drawn source's batch on this rank.

    Raises: ConfigError when one batch per worker does not fit.
    """
    data = config.data
    if not data.num_workers:
        return data.prefetch_batches
    size, name = largest_batch(config, micro_batch_sizes)
    fitting = data.prefetch_mib * 2**20 // (size * data.num_workers)
    if fitting < 1:
        raise ConfigError(
            f"data.prefetch_mib {data.prefetch_mib} does not hold a batch of '{name}' ({size / 2**20:.0f} "
            "MiB) for each of "
            f"{data.num_workers} workers; raise it, lower data.num_workers, or raise "
            "training.gradient_accumulation_steps"
        )
    if fitting < data.prefetch_batches:
        log.info(
            "each worker keeps %d batches ready instead of %d, as data.prefetch_mib is %d",
            fitting,
            data.prefetch_batches,
            data.prefetch_mib,
        )
    return min(data.prefetch_batches, fitting)


def largest_batch(config: Config, micro_batch_sizes: Mapping[str, int]) -> tuple[int, str]:
    """Returns the bytes of the largest batch of any source on this rank, and that source's name."""
    return max(
        (sample_bytes(config, config.data.sources[name]) * count, name)
        for name, count in micro_batch_sizes.items()
    )


def sample_bytes(config: Config, source: SourceConfig) -> int:
    """Returns the most bytes that one sample takes in a batch, by the family's plan."""
    return config.model.plan(config, source).bytes_per_sample() + _LABELS
