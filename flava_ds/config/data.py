"""The part of the configuration that says what is read, and in which order; `flava_ds.config` offers it as its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """Augmentation of one image; drawn from (seed, source, epoch, sample), never from a global generator."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area kept by the random resized crop."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: float = 0.0
    """Probability."""
    rotation_degrees: float = 0.0
    """Largest absolute angle."""
    color_jitter: float = 0.0
    """Strength in [0, 1] of a random linear map of the colours around their mean."""
    grayscale: float = 0.0
    """Probability."""
    invert: float = 0.0
    """Probability of a negative."""
    edges: float = 0.0
    """Probability of replacing the picture by the outline of its luminance."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus: shards in img2dataset layout, its kind, and how often a step draws it."""

    name: str
    kind: Literal["image", "text", "pair"]
    shards: str
    """A folder, one .tar, a brace pattern such as '/data/{00000..00099}.tar', or a .txt that lists such entries; each local or a URL."""
    weight: float = 1.0
    """Share of steps that draw this source, relative to the others', or to those of its kind where data.kind_weights is set."""
    global_batch_size: int | None = None
    """Samples of one optimizer step over all ranks; None takes training.global_batch_size."""
    caption_key: str | None = None
    """Field of the sample's .json that holds a caption or a list of captions; None takes the .txt."""
    max_tokens: int = 77
    """Longest text kept, special tokens included; longer text is cut."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    image_codes_key: str | None = None
    """Member suffix of precomputed codebook indices, e.g. 'codes.npy'; None computes them on the device. Needs a transform that changes nothing."""
    masked_share: float = 1.0
    """Share of a pair batch that also goes through the masked and the fused pass (MMM, ITM); the contrastive loss sees the whole batch.

    1 as in the paper. Those passes are two thirds of a pair step, so at 0.25 the contrastive loss gets twice the pairs in the same time.
    """
    max_skipped_share: float = 0.05
    """The run stops when more than this share of the samples seen was unusable."""
    skip_list: str | None = None
    """File of samples to leave out, by key or by hash of the picture; `flava-ds prepare skiplist` makes one."""


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """New weights from a step on."""

    step: int
    """The first optimizer step with these weights; a multiple of data.block_steps."""
    weights: tuple[float, ...] | None = None
    """One per source, in their order, in place of SourceConfig.weight; None keeps what holds till then. 0 rests a source."""
    kind_weights: tuple[float, ...] | None = None
    """In place of data.kind_weights; None keeps what holds till then."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The sources and how they are read."""

    sources: tuple[SourceConfig, ...] = ()
    vocabulary: str = "bert_base_uncased"
    """A name under flava_ds/data/vocab or the path of a WordPiece vocab.txt."""
    kind_weights: tuple[float, ...] | None = None
    """Shares of the steps that draw pairs, images and text; sources share those of their kind. None: each source's weight counts among all."""
    weigh_by_size: bool = False
    """Multiply each source's weight by its number of samples, so that sources of equal weight pass through their epochs at the same rate."""
    weight_changes: tuple[WeightChange, ...] = ()
    """Changes of the weights on the way, by ascending step."""
    block_steps: int = 1
    """Consecutive optimizer steps that draw the same source; ZeRO-3 likes 6."""
    shuffle: bool = True
    """False reads samples in the order of the shards."""
    shuffle_block_size: int = 1
    """Consecutive samples that the shuffle keeps near each other, so that they are read from one range of a shard; 1 is the full shuffle."""
    shuffle_window_blocks: int = 1024
    """Blocks among whose samples the shuffle mixes; their bytes are the working set. Nothing where shuffle_block_size is 1."""
    num_workers: int = 2
    """Loader processes per rank, shared by all sources."""
    prefetch_batches: int = 2
    """Batches that each worker keeps ready, at most."""
    prefetch_mib: int = 2048
    """Most memory per rank for batches kept ready; large batches are prefetched in smaller number."""
    max_member_bytes: int = 2**26
    """A sample with a larger member (picture, caption, codes) is skipped before a byte of it is read."""
    max_image_pixels: int = 2**26
    """A picture with more pixels, by its header, is skipped before it is decoded; as RGB it would take three bytes for each."""
    cache_directory: str | None = None
    """Folder for parts of remote shards, shared by the processes of a machine; None takes the user's cache."""
    cache_gib: float = 64.0
    """Largest size of that folder, in GiB; with a shuffle by blocks, a window's samples should fit."""
    read_retries: int = 4
    """How often a read from afar is repeated, after growing pauses, before the run stops."""
    read_timeout_s: float = 30.0
    """Seconds that one such read, of 8 MiB at most, may take before it counts as failed."""
    worker_timeout_s: int = 300
    """Seconds without a batch after which a loader process counts as hung and the run stops; 0 waits forever."""


KINDS = ("pair", "image", "text")
"""The order of data.kind_weights."""

UNCHANGED = ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
"""The transform under which precomputed codes stay true."""


def check_data(data: DataConfig, max_tokens: int) -> None:
    """Raises ConfigError naming the field, the value and the way out."""
    for name in (
        "block_steps",
        "shuffle_block_size",
        "shuffle_window_blocks",
        "prefetch_batches",
        "prefetch_mib",
        "max_member_bytes",
        "max_image_pixels",
        "cache_gib",
    ):
        value = getattr(data, name)
        if value <= 0 or (name != "cache_gib" and value < 1):
            raise ConfigError(f"data.{name} is {value}; it must be {'above 0' if name == 'cache_gib' else 'at least 1'}")
    if data.read_timeout_s <= 0:
        raise ConfigError(f"data.read_timeout_s is {data.read_timeout_s:g}; it must be above 0")
    longest = (data.read_retries + 1) * data.read_timeout_s
    if 0 < data.worker_timeout_s < longest and any("://" in source.shards for source in data.sources):
        raise ConfigError(
            f"data.worker_timeout_s {data.worker_timeout_s} is less than the {longest:g} s that a failing read may take (data.read_retries + 1 times "
            "data.read_timeout_s); raise it, so that such a read is named instead of its process"
        )
    names = [source.name for source in data.sources]
    if len(set(names)) != len(names):
        raise ConfigError(f"data.sources: names must differ, got {names}")
    for number, source in enumerate(data.sources):
        _check_source(number, source, max_tokens)
    _check_weights(data)


def draws_nothing(data: DataConfig, source: SourceConfig) -> bool:
    """Tells whether no step ever draws `source`."""
    of_kind = 1.0 if data.kind_weights is None else data.kind_weights[KINDS.index(source.kind)]
    return source.weight * of_kind == 0 and not data.weight_changes


def _check_source(number: int, source: SourceConfig, max_tokens: int) -> None:
    """Checks the source at place `number`."""
    if source.weight < 0:
        raise ConfigError(f"source '{source.name}': weight {source.weight} is negative")
    if not 0 < source.masked_share <= 1:
        raise ConfigError(f"source '{source.name}': masked_share {source.masked_share:g} must lie above 0 and at most at 1")
    if source.masked_share != 1 and source.kind != "pair":
        raise ConfigError(f"source '{source.name}': masked_share {source.masked_share:g} is for pairs; {source.kind} batches are masked as a whole")
    if source.kind != "image" and not 2 < source.max_tokens <= max_tokens:
        raise ConfigError(f"source '{source.name}': max_tokens {source.max_tokens} must lie between 3 and {max_tokens}, the longest text that the model takes")
    if not 0 <= source.max_skipped_share <= 1:
        raise ConfigError(f"source '{source.name}': max_skipped_share {source.max_skipped_share:g} must lie between 0 and 1")
    _check_transform(f"source '{source.name}': transform", source.transform)
    if source.image_codes_key and source.transform != UNCHANGED:
        raise ConfigError(
            f"source '{source.name}': precomputed image codes need an unchanging transform (config.UNCHANGED); set "
            f"--data.sources.{number}.transform.crop-scale 1 1 --data.sources.{number}.transform.crop-ratio 1 1 and its other fields to 0"
        )


def _check_transform(where: str, transform: ImageTransformConfig) -> None:
    """Checks one augmentation."""
    if not 0 < transform.crop_scale[0] <= transform.crop_scale[1] <= 1:
        raise ConfigError(f"{where}.crop_scale {transform.crop_scale}: give the least and the largest share of the area, above 0 and at most 1")
    if not 0 < transform.crop_ratio[0] <= transform.crop_ratio[1] < float("inf"):
        raise ConfigError(f"{where}.crop_ratio {transform.crop_ratio}: give the least and the largest width / height, above 0")
    for name in ("horizontal_flip", "color_jitter", "grayscale", "invert", "edges"):
        if not 0 <= (value := getattr(transform, name)) <= 1:
            raise ConfigError(f"{where}.{name} {value:g} must lie between 0 and 1")


def _check_weights(data: DataConfig) -> None:
    """Checks the lengths, signs and steps of weights; round_robin checks that something can be drawn."""
    stages = [("data.kind_weights", data.kind_weights, 3)]
    last = 0
    for number, change in enumerate(data.weight_changes):
        name = f"data.weight_changes[{number}]"
        if change.step <= last or change.step % data.block_steps:
            raise ConfigError(f"{name}: step {change.step} must come after step {last} and be a multiple of data.block_steps {data.block_steps}")
        if change.weights is None and change.kind_weights is None:
            raise ConfigError(f"{name} changes nothing; set weights or kind_weights")
        last = change.step
        stages += [(f"{name}.weights", change.weights, len(data.sources)), (f"{name}.kind_weights", change.kind_weights, 3)]
    for name, weights, count in stages:
        if weights is not None and (len(weights) != count or min(weights) < 0 or not sum(weights)):
            what = "pairs, images and text" if count == 3 and "kind" in name else "each source"
            raise ConfigError(f"{name} {list(weights)}: give {count} numbers of at least 0, for {what}, and one of them above 0")
