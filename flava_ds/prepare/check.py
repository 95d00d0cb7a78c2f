"""Checks shards before GPU hours are spent: contents, damage, and whether this machine is fast enough."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flava_ds.config import Config, SourceConfig
from flava_ds.config.data import SampleKind
from flava_ds.data.decode import read_header
from flava_ds.data.first_look import look_over
from flava_ds.data.indexed import IndexedShards, prepare_source
from flava_ds.data.reader import BatchReader
from flava_ds.data.samples import MAX_CHARACTERS, Sample
from flava_ds.data.skip_list import differing_bits, perceptual_hash
from flava_ds.data.skip_log import MIN_SEEN
from flava_ds.data.targets import TARGETS_SUFFIX
from flava_ds.errors import DataError, number_of
from flava_ds.prepare.img2dataset import left_out
from flava_ds.recipes import resolve
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault, counted
from flava_ds.storage.index import load_indexes
from flava_ds.storage.members import IMAGE_SUFFIXES
from flava_ds.storage.shards import expand_shards

log = logging.getLogger(__name__)

NEAR_BITS = 3
_BANDS = NEAR_BITS + 1
_TIMED_S, _TIMED_BATCH = 5.0, 32
CHECKED = "checked"
"""Name of the source whose shards are checked, where the recipe has none of its kind."""
_SHOWN, _DAMAGED_NAMED = 24, 10
_MOST_LENGTH = MAX_CHARACTERS + 2
"""Tokens beyond which no text is, as a token has a character at least."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """The throughput that a training run needs."""

    gpus: int
    images_per_second_per_gpu: float

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs together."""
        return self.gpus * self.images_per_second_per_gpu


@dataclass(kw_only=True)
class Check:
    """The results of a check.

    Counts of shards, samples and bytes are exact; everything else is from the `read` samples, which are
    evenly spaced. `token_lengths`, `aspect_ratios` and `regions` have one number per sample read; `sizes` are
    (width, height); `shown` are numbers of samples for the page. `left_out` counts, by reason, what yielded
    no sample when the shards were written.
    """

    place: str
    shards: int
    kind: SampleKind
    recipe: str
    need: Need
    samples: int
    total_bytes: int
    samples_per_shard: list[int]
    members: dict[str, int]
    damage: dict[str, int]
    left_out: dict[str, int]
    read: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    bad_examples: list[str]
    formats: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    token_lengths: list[int] = field(default_factory=list)
    max_tokens: int
    same_bytes: list[list[str]] = field(default_factory=list)
    look_alike: list[list[str]] = field(default_factory=list)
    cores: int = 0
    samples_per_core_second: float = 0.0
    global_batch_size: int
    loader_processes: int
    shown: list[int] = field(default_factory=list)
    verdicts: list[tuple[bool, str]] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    """What would end a run of the recipe on these shards, in its own words."""
    source: IndexedShards

    @property
    def samples_per_second(self) -> float:
        """Predicted throughput of this machine, using all cores."""
        return self.samples_per_core_second * self.cores

    @property
    def aspect_ratios(self) -> list[float]:
        """Width divided by height of each image."""
        return [width / height for width, height in self.sizes]

    @property
    def volume(self) -> str:
        """Size of all shards, with unit."""
        if self.total_bytes >= 2**30:
            return f"{self.total_bytes / 2**30:,.2f} GiB"
        return f"{self.total_bytes / 2**20:.2f} MiB"

    def as_json(self) -> bytes:
        """Serialises everything but the source."""
        names = [item.name for item in dataclasses.fields(self) if item.name not in ("source", "need")]
        plain = {name: getattr(self, name) for name in names}
        plain |= {"need": dataclasses.asdict(self.need), "samples_per_second": self.samples_per_second}
        return json.dumps(plain, indent=1, ensure_ascii=False).encode() + b"\n"


def check_shards(
    shards: str, need: Need, *, recipe: str = "flava_base", caption_key: str | None = None, most: int = 10_000
) -> Check:
    """Indexes all shards, reads up to `most` samples (0: all), and times reading to masking with the recipe.

    Raises: DataError when there is no usable sample; ConfigError for an unknown recipe.
    """
    paths = expand_shards(shards)
    members, samples_per_shard, damaged = _counts(paths)
    kind = _kind(members, caption_key)
    config, limit = _as_trained(recipe, kind, shards, caption_key)
    [name] = config.data.sources
    prepare_source(config, name)
    source = IndexedShards(config, name)
    found = Check(
        place=shards,
        shards=len(paths),
        kind=kind,
        recipe=recipe,
        need=need,
        samples=sum(samples_per_shard),
        total_bytes=sum(path.stat().st_size for path in paths),
        samples_per_shard=samples_per_shard,
        members=members,
        damage=dict(source.table.faults),
        left_out=left_out(paths),
        bad_examples=damaged,
        max_tokens=source.source.max_tokens,
        global_batch_size=config.global_batch_size(name),
        loader_processes=need.gpus * max(1, config.data.num_workers),
        source=source,
    )
    _read_samples(found, most)
    _time(found, config)
    found.verdicts, found.stops = _judge(found), _stops(found, limit)
    return found


def _counts(paths: Sequence[Path]) -> tuple[dict[str, int], list[int], list[str]]:
    """Indexes the shards; returns their members by suffix, the samples of each, and some damaged ones."""
    members, samples = Counter[str](), []
    damaged: list[str] = []
    for path, index in zip(paths, load_indexes(paths), strict=True):
        if (lost := faults.lossy(index.faults)) and len(damaged) < _DAMAGED_NAMED:
            damaged.append(f"{path}: {counted(lost)}")
        samples.append(len(index))
        counts = np.bincount(index.member_suffix, minlength=len(index.suffixes))
        members.update({index.suffixes[number]: int(n) for number, n in enumerate(counts)})
    return dict(members), samples, damaged


def _kind(members: dict[str, int], caption_key: str | None) -> SampleKind:
    """Returns the kind of the samples: pairs, images or texts."""
    has_image = any(
        members.get(suffix)
        for suffix in members
        if suffix in IMAGE_SUFFIXES or (suffix.endswith(".safetensors") and suffix != TARGETS_SUFFIX)
    )
    return "pair" if has_image and (caption_key or members.get("txt")) else "image" if has_image else "text"


def _as_trained(recipe: str, kind: SampleKind, shards: str, caption_key: str | None) -> tuple[Config, float]:
    """Returns the recipe with these shards in place of its source of that kind, alone, and the share of
    unusable samples that a run allows it.

    Bad samples do not stop the check, and codes are left out.
    """
    config = resolve(recipe, [])
    same_kind = ((name, source) for name, source in config.data.sources.items() if source.kind == kind)
    name, like = next(same_kind, (CHECKED, SourceConfig(kind=kind, shards=shards)))
    source = dataclasses.replace(
        like,
        shards=shards,
        caption_key=caption_key,
        image_codes_key=None,
        regions_key=like.regions_key if kind != "text" else None,
        max_skipped_share=1.0,
        skip_list=None,
    )
    return config.with_sources({name: source}), like.max_skipped_share


def _read_samples(found: Check, most: int) -> None:
    """Reads and decodes evenly spaced samples."""
    source, config = found.source, found.source.config
    tokenizer = config.model.load_tokenizer(config)
    count = min(most or len(source), len(source))
    numbers = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64)).tolist()
    bad, formats, hashes, seen = Counter[str](), Counter[str](), {}, set()
    digests: dict[bytes, list[str]] = {}
    usable, last = [], time.monotonic()
    for number in numbers:
        try:
            fields = source.read(number)
            sample = source.decode(fields, number, 0, draw=0.0)
        except SampleFault as fault:
            bad[fault.reason] += 1
            found.bad_examples += [f"{source.where(number)}: {fault}"] if bad[fault.reason] <= 3 else []
            continue
        usable.append(number)
        _look_at(found, fields, sample, formats)
        name = source.where(number) if sample.key in seen else sample.key  # shards may share keys
        seen.add(name)
        content = fields.get("image", fields.get("regions", fields.get("caption", b"")))
        digests.setdefault(hashlib.sha256(content).digest(), []).append(name)
        if sample.image is not None:
            hashes[name] = perceptual_hash(sample.image)
        found.token_lengths += [len(ids) for ids in tokenizer.encode_batch(sample.captions, _MOST_LENGTH)]
        if time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("read %d of %d samples", len(usable), len(numbers))
    if not usable:
        raise DataError(
            f"none of {len(numbers)} samples in '{source.source.shards}' is usable: {counted(bad)}; e.g. "
            f"{found.bad_examples[-1]}"
        )
    found.read, found.bad, found.formats = len(numbers), dict(bad), dict(formats)
    found.same_bytes = [keys for keys in digests.values() if len(keys) > 1]
    found.look_alike = near_duplicates(hashes, {key for keys in found.same_bytes for key in keys[1:]})
    places = np.unique(np.linspace(0, len(usable) - 1, _SHOWN).astype(np.int64))
    found.shown = [usable[place] for place in places]


def _look_at(found: Check, fields: dict[str, bytes], sample: Sample, formats: Counter[str]) -> None:
    """Records a sample's format and size, or the number of its regions."""
    if sample.image is not None:
        formats[read_header(fields["image"]).format] += 1
        found.sizes.append((sample.image.shape[2], sample.image.shape[1]))
    if sample.regions is not None:
        found.regions.append(len(sample.regions.boxes))


def near_duplicates(hashes: dict[str, int], without: Collection[str] = ()) -> list[list[str]]:
    """Groups keys whose hashes differ in at most NEAR_BITS bits from the group's first.

    Such hashes agree in at least one of NEAR_BITS + 1 bands of 16 bits, so only those pairs are compared.
    """
    keys = [key for key in hashes if key not in without]
    values = np.array([hashes[key] for key in keys], dtype=np.uint64)
    width = 64 // _BANDS
    buckets: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
    groups: dict[int, list[str]] = {}
    for number, value in enumerate(values.tolist()):
        bands = [value >> (width * band) & (2**width - 1) for band in range(_BANDS)]
        candidates = [
            row for bucket, band in zip(buckets, bands, strict=True) for row in bucket.get(band, ())
        ]
        rows = np.unique(candidates).astype(np.int64)
        close = rows[differing_bits(values[rows], value) <= NEAR_BITS] if len(rows) else rows
        if len(close):
            groups.setdefault(int(close[0]), [keys[close[0]]]).append(keys[number])
        else:
            for bucket, band in zip(buckets, bands, strict=True):
                bucket.setdefault(band, []).append(number)
    return list(groups.values())


def _time(found: Check, config: Config) -> None:
    """Measures one core on whole batches, as a dataloader worker makes them, for some seconds of CPU time.

    The first batch is a warm-up.
    """
    reader, position, done, used = BatchReader(config, found.source), 0, 0, 0.0
    reader.skips.silent = True  # what is unusable has been named
    size = min(_TIMED_BATCH, found.global_batch_size)
    reader.batch(np.arange(size))
    while used < _TIMED_S and done < max(2 * len(found.source), 4 * size):
        position += size
        start = time.process_time()
        reader.batch(np.arange(position, position + size))
        used += time.process_time() - start
        done += size
    found.cores, found.samples_per_core_second = len(os.sched_getaffinity(0)), done / max(used, 1e-9)


def _judge(found: Check) -> list[tuple[bool, str]]:
    """Returns the verdicts: whether each condition for a run holds, and a sentence about it."""
    need, rate = found.need.samples_per_second, found.samples_per_core_second
    lost = sum(found.bad.values()) / found.read
    cut = sum(length > found.max_tokens for length in found.token_lengths) / max(1, len(found.token_lengths))
    copies = sum(len(keys) - 1 for keys in found.same_bytes + found.look_alike) / found.read
    twins = "" if found.read >= len(found.source) else ", as far as both were read: --samples 0 reads all"
    steps = found.samples / found.global_batch_size
    epoch = f"{steps:,.1f}" if steps >= 1 else f"{steps:.2g}"
    verb = "needs" if found.need.gpus == 1 else "need"
    return [
        (lost <= 0.05, f"{lost:.2%} of the samples read are unusable ({counted(found.bad)})"),
        (not found.damage, f"lost inside of the shards: {counted(found.damage)}"),
        (copies <= 0.01, f"{copies:.2%} of the samples read are copies or near copies of another{twins}"),
        (
            cut <= 0.1,
            f"{cut:.2%} of the captions are longer than max_tokens {found.max_tokens} and will be truncated",
        ),
        (
            found.samples_per_second >= need,
            f"this machine can prepare {found.samples_per_second:,.0f} samples/s ({found.cores} cores x "
            f"{rate:,.0f}); {number_of(found.need.gpus, 'GPU')} {verb} {need:,.0f}, the work of "
            f"{number_of(math.ceil(need / rate), 'core')}",
        ),
        (steps >= 1, f"one epoch is {epoch} steps at a global batch of {found.global_batch_size:,}"),
        (
            found.shards >= found.loader_processes,
            f"{number_of(found.shards, 'shard')} for {found.loader_processes} loader processes "
            f"({number_of(found.need.gpus, 'rank')} x {found.loader_processes // found.need.gpus}); fewer "
            "shards work here, but several processes then read one file, and loaders that hand out whole "
            "shards would stop",
        ),
    ]


def _stops(found: Check, limit: float) -> list[str]:
    """Lists what would end a run: what it looks at before its first step, and too many unusable samples."""
    source, said = found.source, []
    for look in (
        lambda: source.check_losses(limit),
        lambda: look_over(source.config, {source.name: source}),
        lambda: _check_read(found, limit),
    ):
        try:
            look()
        except DataError as error:
            said.append(str(error))
    return said


def _check_read(found: Check, limit: float) -> None:
    """Raises DataError when too many of the samples read are unusable, if these are enough to tell, or all: a
    run meets every sample of a small source in several epochs.
    """
    lost = sum(n for reason, n in found.bad.items() if reason != faults.SKIP_LIST)
    enough = found.read >= min(MIN_SEEN, len(found.source))
    if enough and lost > limit * found.read:
        raise DataError(
            f"source '{found.source.name}': {lost} of {found.read} samples read ({lost / found.read:.1%}) "
            f"are unusable, more than max_skipped_share {limit}: "
            f"{faults.remedy(found.source.name, found.bad)}"
        )


def describe(found: Check) -> str:
    """Formats the check for a terminal."""
    per_shard = sorted(found.samples_per_shard)
    lines = [
        f"{found.place}: {found.samples:,} {found.kind} samples in {number_of(found.shards, 'shard')}, "
        f"{found.volume}; "
        f"{per_shard[0]:,} to {per_shard[-1]:,} samples per shard, median {per_shard[len(per_shard) // 2]:,}",
        f"members: {counted(found.members)}",
        f"read {found.read:,} samples; formats: {counted(found.formats)}",
        *([f"left out when they were written: {counted(found.left_out)}"] if found.left_out else []),
    ]
    for name, values in (
        ("caption tokens", found.token_lengths),
        ("width / height", found.aspect_ratios),
        ("shorter side, px", [min(s) for s in found.sizes]),
        ("regions of an image", found.regions),
    ):
        if values:
            lines.append(f"{name}: " + ", ".join(f"{label} {n:.4g}" for label, n in quantiles(values)))
    lines += [f"  {'ok  ' if good else 'LOOK'}  {text}" for good, text in found.verdicts]
    lines += [f"  STOP  a run of {found.recipe} would end with: {reason}" for reason in found.stops]
    return "\n".join([*lines, *(f"        {example}" for example in found.bad_examples)])


def quantiles(values: Sequence[float]) -> list[tuple[str, float]]:
    """Returns the minimum, the maximum, the median and two quantiles."""
    shares = (("least", 0.0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("most", 1.0))
    return [(label, float(np.quantile(values, share))) for label, share in shares]
