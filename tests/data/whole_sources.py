"""Reads a source from its first sample to its last, and the groups of reasons why one cannot be used."""

from collections.abc import Iterator

from flava_ds.config import Config
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.samples import Sample
from flava_ds.data.skip_log import SkipLog
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

OF_INCOMPLETE_SAMPLES = (
    faults.NO_IMAGE,
    faults.MISSING_CAPTION,
    faults.BAD_CODES,
    faults.NO_REGIONS,
    faults.NO_TARGETS,
    faults.NO_IDENTITY,
)
"""Counted per sample when a run starts; MISSING_CAPTION and BAD_CODES also while it reads."""
OF_A_SAMPLE = (
    faults.TRUNCATED,
    faults.UNDECODABLE,
    faults.TOO_MANY_PIXELS,
    faults.TOO_MANY_BYTES,
    faults.MISSING_CAPTION,
    faults.EMPTY_CAPTION,
    faults.NOT_UTF8,
    faults.BAD_CODES,
    faults.NO_REGIONS,
    faults.BAD_REGIONS,
    faults.TOO_MANY_REGIONS,
    faults.NO_TARGETS,
    faults.NO_IDENTITY,
    faults.BAD_TARGETS,
    faults.TOO_MANY_TARGETS,
    faults.SKIP_LIST,
)
"""Counted per sample while a run reads; the sample is replaced."""


def iterate_once(config: Config, name: str, batch_size: int = 64) -> Iterator[list[Sample]]:
    """Yields every usable sample of source `name` once, in shard order.

    Samples are decoded but not augmented, and carry all captions.

    Raises: DataError when the share of unusable samples exceeds the source's limit.
    """
    source = IndexedShards(config, name)
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
