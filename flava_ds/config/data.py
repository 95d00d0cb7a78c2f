"""The part of the configuration that says what is read, and in which order; `flava_ds.config` offers it as
its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from flava_ds.config.bounds import Above, AtLeast, AtMost, Below, Between, Range, Share
from flava_ds.config.readers import ReaderConfig
from flava_ds.errors import ConfigError, did_you_mean

Portion = Annotated[float, Range(0, 1, open_least=True)]
"""A share that is never nothing."""
Ratio = Annotated[float, Above(0), AtMost(100)]
Weight = Annotated[float, AtLeast(0), AtMost(10**9)]


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """Augmentation of one image; drawn from (seed, source, epoch, sample), never from a global generator."""

    crop_scale: tuple[Portion, Portion] = (0.9, 1.0)
    """Least and largest share of the area kept by the random resized crop."""
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """Least and largest width / height of the crop."""
    horizontal_flip: Share = 0.0
    """Probability."""
    rotation_degrees: Annotated[float, Between(0, 180)] = 0.0
    """Largest absolute angle."""
    color_jitter: Share = 0.0
    """Strength in [0, 1] of a random linear map of the colours around their mean."""
    grayscale: Share = 0.0
    """Probability."""
    invert: Share = 0.0
    """Probability of a negative."""
    edges: Share = 0.0
    """Probability of replacing the picture by the outline of its luminance."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus: shards in img2dataset layout, its kind, and how often a step draws it. Its name is its key
    in data.sources.
    """

    kind: Literal["image", "text", "pair"]
    shards: str
    """A folder, one .tar, a brace pattern such as '/data/{00000..00099}.tar', or a .txt that lists such
    entries; each local or a URL.
    """
    weight: Weight = 1.0
    """Share of steps that draw this source, relative to the others', or to those of its kind where
    data.kind_weights is set.
    """
    seed: Annotated[int, AtLeast(0), Below(2**64)] | None = None
    """Fixes, with the run's seed, the order of its samples and everything random about them; None takes a
    hash of its name.

    So neither its place among the sources nor what the others are called changes its order. A source that
    gets another name keeps its order under the seed that it had; `flava-ds config` and the loader's state in
    a checkpoint show it. Seeds of one run differ.
    """
    global_batch_size: Annotated[int, AtLeast(1), AtMost(2**24)] | None = None
    """Samples of one optimizer step over all ranks; None takes training.global_batch_size."""
    caption_key: str | None = None
    """Field of the sample's .json that holds a caption or a list of captions; None takes the .txt."""
    max_tokens: Annotated[int, AtLeast(1), AtMost(2**20)] = 77
    """Longest text kept, special tokens included; longer text is cut."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    image_codes_key: str | None = None
    """Member suffix of precomputed codebook indices, e.g. 'codes.npy'; None computes them on the device.
    Needs a transform that changes nothing.
    """
    masked_share: Portion = 1.0
    """Share of a pair batch that also goes through the masked and the fused pass (MMM, ITM); the contrastive
    loss sees the whole batch.

    1 as in the paper. Those passes are two thirds of a pair step, so at 0.25 the contrastive loss gets twice
    the pairs in the same time.
    """
    reading: Literal["indexed", "stream"] = "indexed"
    """'indexed' reads any sample by its place in a shard: the order is exact on any number of ranks, and a
    run resumes anywhere in it. 'stream' reads shards from front to back through webdataset, without an index:
    the order belongs to the ranks and loader processes that read."""
    reader: ReaderConfig | None = None
    """A way to samples of one's own, in place of `reading`; what `shards` means is its affair then."""
    shuffle_buffer: Annotated[int, AtLeast(1), AtMost(2**24)] = 1000
    """Samples, as bytes, among which a stream is shuffled, in each loader process; data.shuffle off keeps the
    order of the shards.
    """
    pipeline: str | None = None
    """'path/to/file.py:function' that yields a stream's samples instead of ours; see docs/data.md. Needs
    allow_code.
    """
    allow_code: bool = False
    """Let this stream run what its options name: `pipe:` commands in `shards`, and `pipeline`. A list of
    shards never does, and a saved configuration has to be told again."""
    max_skipped_share: Share = 0.05
    """The run stops when more than this share of the samples seen was unusable."""
    skip_list: str | None = None
    """File of samples to leave out, by key or by hash of the picture; `flava-ds prepare skiplist` makes one.
    """


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """New weights from a step on."""

    step: Annotated[int, AtLeast(1), AtMost(10**9)]
    """The first optimizer step with these weights; a multiple of data.block_steps."""
    weights: dict[str, Weight] | None = None
    """By the name of a source, in place of SourceConfig.weight; a source that is not named keeps what holds
    till then. 0 rests a source.
    """
    kind_weights: dict[str, Weight] | None = None
    """By kind, in place of data.kind_weights; a kind that is not named keeps what holds till then."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The sources and how they are read."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """The corpora by name: letters, digits, '_', '-', '.' and '+'. Their order means nothing."""
    vocabulary: str = "bert_base_uncased"
    """A name under flava_ds/data/vocab, the path of a WordPiece vocab.txt, or "clip_bpe": CLIP's byte pairs
    (extra `clip`).
    """
    kind_weights: dict[str, Weight] | None = None
    """Shares of the steps by kind, e.g. pair 0.7 image 0.15 text 0.15; sources share those of their kind.
    None: each source's weight counts among all.
    """
    weigh_by_size: bool = False
    """Multiply each source's weight by its number of samples, so that sources of equal weight pass through
    their epochs at the same rate.
    """
    weight_changes: tuple[WeightChange, ...] = ()
    """Changes of the weights on the way, by ascending step."""
    block_steps: Annotated[int, AtLeast(1), AtMost(10**6)] = 1
    """Consecutive optimizer steps that draw the same source; ZeRO-3 likes 6."""
    shuffle: bool = True
    """False reads samples in the order of the shards."""
    shuffle_block_size: Annotated[int, AtLeast(1), AtMost(2**31)] = 1
    """Consecutive samples that the shuffle keeps near each other, so that they are read from one range of a
    shard; 1 is the full shuffle.
    """
    shuffle_window_blocks: Annotated[int, AtLeast(1), AtMost(2**31)] = 1024
    """Blocks among whose samples the shuffle mixes; their bytes are the working set. Nothing where
    shuffle_block_size is 1.
    """
    num_workers: Annotated[int, AtLeast(0), AtMost(1024)] = 2
    """Loader processes per rank, shared by all sources."""
    prefetch_batches: Annotated[int, AtLeast(1), AtMost(1024)] = 2
    """Batches that each worker keeps ready, at most."""
    prefetch_mib: Annotated[int, AtLeast(1), AtMost(2**24)] = 2048
    """Most memory per rank for batches kept ready; large batches are prefetched in smaller number."""
    max_member_bytes: Annotated[int, AtLeast(1), AtMost(2**40)] = 2**26
    """A sample with a larger member (picture, caption, codes) is skipped before a byte of it is read."""
    max_image_pixels: Annotated[int, AtLeast(1), AtMost(2**40)] = 2**26
    """A picture with more pixels, by its header, is skipped before it is decoded; as RGB it would take three
    bytes for each.
    """
    cache_directory: str | None = None
    """Folder for parts of remote shards, shared by the processes of a machine; None takes the user's cache.
    """
    cache_gib: Annotated[float, Above(0), AtMost(2**20)] = 64.0
    """Largest size of that folder, in GiB; with a shuffle by blocks, a window's samples should fit."""
    read_retries: Annotated[int, AtLeast(0), AtMost(1000)] = 4
    """How often a read from afar is repeated, after growing pauses, before the run stops."""
    read_timeout_s: Annotated[float, Above(0), AtMost(86_400)] = 30.0
    """Seconds that one such read, of 8 MiB at most, may take before it counts as failed."""
    worker_timeout_s: Annotated[int, AtLeast(0), AtMost(7 * 86_400)] = 300
    """Seconds without a batch after which a loader process counts as hung and the run stops; 0 waits forever.
    """


KINDS = ("pair", "image", "text")
"""What a sample of a source may hold."""

UNCHANGED = ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
"""The transform under which precomputed codes stay true."""

_NAME = re.compile(r"\w[\w.+-]*")
_LONGEST_NAME = 100


def weights_by_stage(data: DataConfig) -> list[tuple[int, dict[str, float], dict[str, float] | None]]:
    """Returns, for every stage of equal weights, its first step, each source's weight, and each kind's where
    data.kind_weights is set.
    """
    weights, kind_weights = {name: source.weight for name, source in data.sources.items()}, data.kind_weights
    stages = [(0, weights, kind_weights)]
    for change in data.weight_changes:
        weights = weights | (change.weights or {})
        kind_weights = (
            kind_weights if change.kind_weights is None else (kind_weights or {}) | change.kind_weights
        )
        stages.append((change.step, weights, kind_weights))
    return stages


def drawn_sources(data: DataConfig) -> dict[str, SourceConfig]:
    """Returns the sources that some step of a run draws; the others are idle, and nothing looks for their
    shards.
    """
    drawn = set().union(*(_drawn(data, weights, kinds) for _, weights, kinds in weights_by_stage(data)))
    return {name: source for name, source in data.sources.items() if name in drawn}


def _drawn(
    data: DataConfig, weights: Mapping[str, float], kind_weights: Mapping[str, float] | None
) -> set[str]:
    """Returns the names of the sources that a stage draws."""
    return {
        name
        for name, source in data.sources.items()
        if weights[name] and (kind_weights is None or kind_weights.get(source.kind))
    }


def check_data(data: DataConfig, max_tokens: int) -> None:
    """Raises ConfigError naming the field, the value and the way out."""
    longest = (data.read_retries + 1) * data.read_timeout_s
    if 0 < data.worker_timeout_s < longest and any(
        "://" in source.shards for source in data.sources.values()
    ):
        raise ConfigError(
            f"data.worker_timeout_s {data.worker_timeout_s} is less than the {longest:g} s that a failing "
            "read may take (data.read_retries + 1 times "
            "data.read_timeout_s); raise it, so that such a read is named instead of its process"
        )
    check_names(data.sources)
    for name, source in data.sources.items():
        _check_source(name, source, max_tokens)
    _check_weights(data)


def check_names(sources: Mapping[str, SourceConfig]) -> None:
    """Raises ConfigError for a name that cannot stand in an option, a message and a number of the log, or a
    seed that two sources share.
    """
    options: dict[str, str] = {}
    seeds: dict[int, str] = {}
    for name, source in sources.items():
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ConfigError(
                f"data.sources: {name!r:.80} cannot name a source; use letters, digits, '_', '-', '.' "
                "and '+', a letter or digit first, at most 100 of them"
            )
        if (other := options.setdefault(name.replace("_", "-"), name)) != name:
            raise ConfigError(
                f"data.sources: '{other}' and '{name}' differ only in '_' and '-', which are the same in "
                "options; rename one"
            )
        if source.seed is not None and (other := seeds.setdefault(source.seed, name)) != name:
            raise ConfigError(
                f"data.sources: '{other}' and '{name}' both have seed {source.seed}; change "
                f"--data.sources.{name}.seed"
            )


def _check_source(name: str, source: SourceConfig, max_tokens: int) -> None:
    """Checks one source."""
    if source.masked_share != 1 and source.kind != "pair":
        raise ConfigError(
            f"source '{name}': masked_share {source.masked_share:g} is for pairs; {source.kind} batches "
            "are masked as a whole"
        )
    if source.kind != "image" and not 2 < source.max_tokens <= max_tokens:
        raise ConfigError(
            f"source '{name}': max_tokens {source.max_tokens} must lie between 3 and {max_tokens}, the "
            "longest text that the model takes"
        )
    if source.pipeline is not None and source.reading != "stream":
        raise ConfigError(
            f"source '{name}': pipeline is for streams; set --data.sources.{name}.reading stream"
        )
    _check_transform(f"source '{name}': transform", source.transform)
    if source.image_codes_key and source.transform != UNCHANGED:
        raise ConfigError(
            f"source '{name}': precomputed image codes need an unchanging transform (config.UNCHANGED); set "
            f"--data.sources.{name}.transform.crop-scale 1 1 --data.sources.{name}.transform.crop-ratio 1 "
            "1 and its other fields to 0"
        )


def _check_transform(where: str, transform: ImageTransformConfig) -> None:
    """Checks one augmentation."""
    if transform.crop_scale[0] > transform.crop_scale[1]:
        raise ConfigError(
            f"{where}.crop_scale {transform.crop_scale}: give the least and the largest share of the "
            "area, in this order"
        )
    if transform.crop_ratio[0] > transform.crop_ratio[1]:
        raise ConfigError(
            f"{where}.crop_ratio {transform.crop_ratio}: give the least and the largest width / height, "
            "in this order"
        )


def _check_weights(data: DataConfig) -> None:
    """Checks the names, signs and steps of weights; round_robin checks that something can be drawn."""
    kinds = sorted({source.kind for source in data.sources.values()} | set(KINDS))
    _check_mapping("data.kind_weights", data.kind_weights, kinds, "kind")
    last = 0
    for number, change in enumerate(data.weight_changes):
        name = f"data.weight_changes[{number}]"
        if change.step <= last or change.step % data.block_steps:
            raise ConfigError(
                f"{name}: step {change.step} must come after step {last} and be a multiple of "
                f"data.block_steps {data.block_steps}"
            )
        if not change.weights and not change.kind_weights:
            raise ConfigError(f"{name} changes nothing; set weights or kind_weights")
        last = change.step
        _check_mapping(f"{name}.weights", change.weights, list(data.sources), "source")
        _check_mapping(f"{name}.kind_weights", change.kind_weights, kinds, "kind")
    for first, weights, of_kinds in weights_by_stage(data):
        if data.sources and not _drawn(data, weights, of_kinds):
            raise ConfigError(
                f"data.sources: no source has a weight above 0 at step {first}; give one, e.g. "
                f"--data.sources.{next(iter(data.sources))}.weight 1"
            )
        unnamed = [
            name
            for name, source in data.sources.items()
            if weights[name] and of_kinds is not None and source.kind not in of_kinds
        ]
        if unnamed:
            kind = data.sources[unnamed[0]].kind
            raise ConfigError(
                f"data.kind_weights: no share for '{kind}', the kind of source '{unnamed[0]}', at step "
                f"{first}; give it one, 0 to rest the kind"
            )


def _check_mapping(where: str, weights: Mapping[str, float] | None, known: list[str], what: str) -> None:
    """Checks the names of weights."""
    for name in weights or {}:
        if name not in known:
            raise ConfigError(
                f"{where}: no {what} is called "
                f"{name!r:.80}{did_you_mean(name, known) or '; there is ' + ', '.join(known)}"
            )
