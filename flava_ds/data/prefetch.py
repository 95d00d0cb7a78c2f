"""Limits how many batches the dataloader workers prefetch to a given amount of memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flava_ds.config import Config, SourceConfig
from flava_ds.data.padding import padding_bytes
from flava_ds.errors import ConfigError

log = logging.getLogger(__name__)

_LABELS = 64
"""Upper bound of bytes per sample for tensors with one entry per sample: labels, rows, sequence ends."""


def prefetch_batches(config: Config, micro_batch_sizes: Mapping[str, int]) -> int:
    """Returns the number of batches that each worker prefetches.

    That is data.prefetch_batches, or fewer if needed to keep workers * batches * largest batch within
    data.prefetch_mib. `micro_batch_sizes` are the samples per batch of each drawn source on this rank.

    Raises: ConfigError when not even one batch per worker fits.
    """
    data = config.data
    if not data.num_workers:
        return data.prefetch_batches
    size, name = largest_batch(config, micro_batch_sizes)
    fitting = data.prefetch_mib * 2**20 // (size * data.num_workers)
    if fitting < 1:
        raise ConfigError(
            f"data.prefetch_mib {data.prefetch_mib} does not hold a batch of '{name}' ({size / 2**20:.0f} "
            f"MiB) for each of {data.num_workers} workers; raise it, lower data.num_workers, or raise "
            "training.gradient_accumulation_steps"
        )
    if fitting < data.prefetch_batches:
        log.info(
            "each worker prefetches %d batches instead of %d, because data.prefetch_mib is %d",
            fitting,
            data.prefetch_batches,
            data.prefetch_mib,
        )
    return min(data.prefetch_batches, fitting)


def largest_batch(config: Config, micro_batch_sizes: Mapping[str, int]) -> tuple[int, str]:
    """Returns the bytes of this rank's largest batch of any source, and that source's name."""
    size, name = max(
        (sample_bytes(config, config.data.sources[name]) * count, name)
        for name, count in micro_batch_sizes.items()
    )
    return size + padding_bytes(config.training.pad_to_multiple_of), name


def sample_bytes(config: Config, source: SourceConfig) -> int:
    """Returns an upper bound of one sample's bytes in a batch, from the family's plan."""
    return config.model.plan(config, source).bytes_per_sample() + _LABELS
