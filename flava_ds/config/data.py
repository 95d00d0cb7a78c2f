"""The configuration of the data: sources, their order and how to read them. Exported by `flava_ds.config`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from flava_ds.config.bounds import Above, AtLeast, AtMost, Below, Between, Range, Share
from flava_ds.config.readers import ReaderConfig
from flava_ds.errors import ConfigError, did_you_mean

Portion = Annotated[float, Range(0, 1, open_least=True)]
"""A share above zero."""
Ratio = Annotated[float, Above(0), AtMost(100)]
Weight = Annotated[float, AtLeast(0), AtMost(10**9)]


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """Augmentation of one image, drawn from (seed, source, epoch, sample), never from a global generator."""

    crop_scale: tuple[Portion, Portion] = (0.9, 1.0)
    """Smallest and largest share of the area that the random resized crop keeps."""
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """Smallest and largest width / height of the crop."""
    horizontal_flip: Share = 0.0
    """Probability of mirroring the image."""
    rotation_degrees: Annotated[float, Between(0, 180)] = 0.0
    """Largest rotation in either direction."""
    color_jitter: Share = 0.0
    """Strength of a random linear map of the colours around their mean."""
    brightness: Share = 0.0
    """Colours are multiplied by a random factor between 1 - brightness and 1 + brightness."""
    contrast: Share = 0.0
    """The same for the distance from the image's mean grey."""
    saturation: Share = 0.0
    """The same for the distance from each pixel's own grey."""
    hue: Annotated[float, Between(0, 0.5)] = 0.0
    """Maximum rotation of the colours around grey, in turns."""
    jitter_probability: Share = 1.0
    """Probability that color_jitter, brightness, contrast, saturation and hue change an image at all."""
    grayscale: Share = 0.0
    """Probability of converting the image to grey."""
    invert: Share = 0.0
    """Probability of inverting the colours."""
    edges: Share = 0.0
    """Probability of replacing the image by the outlines of its luminance."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Annotated[float, Range(0, 100, open_least=True)], Annotated[float, AtMost(100)]] = (
        0.1,
        2.0,
    )
    """Minimum and maximum standard deviation of the blur, in pixels of the result."""
    solarize: Share = 0.0
    """Probability of inverting the brighter half of the grey levels."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus: shards in img2dataset layout, a kind and a weight. Its name is its key in data.sources."""

    kind: Literal["image", "text", "pair"]
    shards: str
    """A folder, one .tar, a brace pattern such as '/data/{00000..00099}.tar', or a .txt that lists such
    entries, one per line; each local or a URL.
    """
    weight: Weight = 1.0
    """Share of steps that draw this source, relative to the other sources (with data.kind_weights: to those
    of its kind).
    """
    seed: Annotated[int, AtLeast(0), Below(2**64)] | None = None
    """With the run's seed, determines the order of its samples and everything random about them; None takes
    a hash of its name.

    So neither its place among the sources nor the names of others change its order. A renamed source keeps
    its order if it keeps its seed, which `flava-ds config` and the loader's state in a checkpoint show. No
    two sources of a run can have the same seed.
    """
    global_batch_size: Annotated[int, AtLeast(1), AtMost(2**24)] | None = None
    """Samples per optimizer step over all ranks; None takes training.global_batch_size."""
    caption_key: str | None = None
    """Field of the sample's .json that holds a caption or a list of captions; None reads the .txt."""
    max_tokens: Annotated[int, AtLeast(1), AtMost(2**20)] = 77
    """Maximum tokens of a text, special tokens included; longer texts are truncated."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    image_codes_key: str | None = None
    """Member suffix of precomputed codebook indices, e.g. 'codes.npy'; None computes them on the device.
    Requires a transform that changes nothing.
    """
    masked_share: Portion = 1.0
    """Share of a pair batch that also takes the masked and fused passes (MMM, ITM); the contrastive loss uses
    the whole batch.

    The paper has 1. These passes are two thirds of the work of a pair step, so at 0.25 the contrastive loss
    gets twice the pairs in the same time.
    """
    reading: Literal["indexed", "stream"] = "indexed"
    """'indexed' reads any sample by its offset in a shard: the order is exact on any number of ranks, and a
    run resumes anywhere. 'stream' reads shards front to back through webdataset, without an index: the order
    depends on the ranks and loader processes.
    """
    reader: ReaderConfig | None = None
    """A custom reader in place of `reading`; it decides what `shards` means."""
    shuffle_buffer: Annotated[int, AtLeast(1), AtMost(2**24)] = 1000
    """Encoded samples in the shuffle buffer of a stream, per loader process; without data.shuffle, a stream
    keeps the order of the shards.
    """
    pipeline: str | None = None
    """'path/to/file.py:function' that yields a stream's samples instead of the built-in pipeline; see
    docs/data.md. Requires allow_code.
    """
    allow_code: bool = False
    """Let this stream run code that its options name: `pipe:` commands in `shards`, and `pipeline`. Never
    applies to lists of shards, and must be passed again when a run starts from a saved configuration.
    """
    max_skipped_share: Share = 0.05
    """Stop the run when more than this share of the samples read is unusable."""
    skip_list: str | None = None
    """File of samples to leave out, by key or image hash; `flava-ds prepare skiplist` makes one."""


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """New weights from a given step."""

    step: Annotated[int, AtLeast(1), AtMost(10**9)]
    """First optimizer step with these weights; a multiple of data.block_steps."""
    weights: dict[str, Weight] | None = None
    """Weights by source name, in place of SourceConfig.weight; other sources keep their current weight. 0
    pauses a source.
    """
    kind_weights: dict[str, Weight] | None = None
    """Weights by kind, in place of data.kind_weights; other kinds keep their current weight."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The sources, and how they are read."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """The corpora by name: letters, digits, '_', '-', '.' and '+'. Their order has no effect."""
    vocabulary: str = "bert_base_uncased"
    """A name under flava_ds/data/vocab, the path of a WordPiece vocab.txt, or "clip_bpe" for CLIP's byte
    pairs (extra `clip`).
    """
    kind_weights: dict[str, Weight] | None = None
    """Shares of the steps by kind, e.g. pair 0.7 image 0.15 text 0.15; the weights of sources divide the
    share of their kind. None: sources of all kinds share the steps by weight.
    """
    weigh_by_size: bool = False
    """Multiply each source's weight by its number of samples, so that sources of equal weight finish an epoch
    in the same number of steps.
    """
    weight_changes: tuple[WeightChange, ...] = ()
    """Changes of the weights during the run, by ascending step."""
    block_steps: Annotated[int, AtLeast(1), AtMost(10**6)] = 1
    """Consecutive optimizer steps that draw the same source; use 6 or more with ZeRO-3 (see ds_configs)."""
    shuffle: bool = True
    """Shuffle the samples; otherwise they are read in the order of the shards."""
    shuffle_block_size: Annotated[int, AtLeast(1), AtMost(2**31)] = 1
    """Consecutive samples that the shuffle keeps together, so that they are read from one range of a shard; 1
    shuffles fully.
    """
    shuffle_window_blocks: Annotated[int, AtLeast(1), AtMost(2**31)] = 1024
    """Blocks whose samples are shuffled together; their bytes are the working set. No effect if
    shuffle_block_size is 1.
    """
    num_workers: Annotated[int, AtLeast(0), AtMost(1024)] = 2
    """Loader processes per rank, shared by all sources."""
    prefetch_batches: Annotated[int, AtLeast(1), AtMost(1024)] = 2
    """Maximum batches that each loader process prefetches."""
    prefetch_mib: Annotated[int, AtLeast(1), AtMost(2**24)] = 2048
    """Maximum memory per rank for prefetched batches; fewer are prefetched if they are large."""
    max_member_bytes: Annotated[int, AtLeast(1), AtMost(2**40)] = 2**26
    """A sample with a larger member (image, caption, codes) is skipped without reading it."""
    max_image_pixels: Annotated[int, AtLeast(1), AtMost(2**40)] = 2**26
    """An image with more pixels in its header is skipped without decoding it; decoded, each pixel takes three
    bytes.
    """
    cache_directory: str | None = None
    """Folder for parts of remote shards, shared by all processes of a host; None takes the user's cache."""
    cache_gib: Annotated[float, Above(0), AtMost(2**20)] = 64.0
    """Maximum size of that folder, in GiB; with a block shuffle, it should hold the samples of one window."""
    read_retries: Annotated[int, AtLeast(0), AtMost(1000)] = 4
    """Retries of a remote read, with growing pauses, before the run stops."""
    read_timeout_s: Annotated[float, Above(0), AtMost(86_400)] = 30.0
    """Seconds before one remote read, of at most 8 MiB, counts as failed."""
    worker_timeout_s: Annotated[int, AtLeast(0), AtMost(7 * 86_400)] = 300
    """Seconds without a batch before a loader process counts as hung and the run stops; 0 waits forever."""


KINDS = ("pair", "image", "text")
"""The possible contents of a source's samples."""

UNCHANGED = ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
"""The transform that precomputed codes require."""

_NAME = re.compile(r"\w[\w.+-]*")
_LONGEST_NAME = 100


def weights_by_stage(data: DataConfig) -> list[tuple[int, dict[str, float], dict[str, float] | None]]:
    """Returns every stage of constant weights: its first step, weights by source, and by kind (or None)."""
    weights, kind_weights = {name: source.weight for name, source in data.sources.items()}, data.kind_weights
    stages = [(0, weights, kind_weights)]
    for change in data.weight_changes:
        weights = weights | (change.weights or {})
        if change.kind_weights is not None:
            kind_weights = (kind_weights or {}) | change.kind_weights
        stages.append((change.step, weights, kind_weights))
    return stages


def drawn_sources(data: DataConfig) -> dict[str, SourceConfig]:
    """Returns the sources that at least one step draws; the shards of the others need not exist."""
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
    """Raises ConfigError that names the field, the value and the fix."""
    longest = (data.read_retries + 1) * data.read_timeout_s
    remote = any("://" in source.shards for source in data.sources.values())
    if remote and 0 < data.worker_timeout_s < longest:
        raise ConfigError(
            f"data.worker_timeout_s {data.worker_timeout_s} is less than the {longest:g} s that a failing "
            "read may take (data.read_retries + 1 times data.read_timeout_s); raise it, so that the error "
            "names the read instead of its process"
        )
    check_names(data.sources)
    for name, source in data.sources.items():
        _check_source(name, source, max_tokens)
    _check_weights(data)


def check_names(sources: Mapping[str, SourceConfig]) -> None:
    """Raises ConfigError for a name that cannot serve in options, messages and logs, or for a shared seed."""
    options: dict[str, str] = {}
    seeds: dict[int, str] = {}
    for name, source in sources.items():
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ConfigError(
                f"data.sources: {name!r:.80} cannot name a source; use letters, digits, '_', '-', '.' "
                "and '+', at most 100 characters, starting with a letter or digit"
            )
        if (other := options.setdefault(name.replace("_", "-"), name)) != name:
            raise ConfigError(
                f"data.sources: '{other}' and '{name}' differ only in '_' and '-', which options do not "
                "distinguish; rename one"
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
            f"source '{name}': masked_share {source.masked_share:g} only applies to pairs; {source.kind} "
            "batches are masked as a whole"
        )
    if source.kind != "image" and not 2 < source.max_tokens <= max_tokens:
        raise ConfigError(
            f"source '{name}': max_tokens {source.max_tokens} must lie between 3 and {max_tokens}, the "
            "model's longest text"
        )
    if source.pipeline is not None and source.reading != "stream":
        raise ConfigError(
            f"source '{name}': pipeline requires a stream; set --data.sources.{name}.reading stream"
        )
    check_transform(f"source '{name}': transform", source.transform)
    if source.image_codes_key and source.transform != UNCHANGED:
        raise ConfigError(
            f"source '{name}': precomputed image codes need an unchanging transform (config.UNCHANGED); set "
            f"--data.sources.{name}.transform.crop-scale 1 1 --data.sources.{name}.transform.crop-ratio 1 "
            "1 and its other fields to 0"
        )


def check_transform(where: str, transform: ImageTransformConfig) -> None:
    """Checks one augmentation."""
    if transform.crop_scale[0] > transform.crop_scale[1]:
        raise ConfigError(
            f"{where}.crop_scale {transform.crop_scale}: give the smallest share of the area first, then "
            "the largest"
        )
    if transform.crop_ratio[0] > transform.crop_ratio[1]:
        raise ConfigError(
            f"{where}.crop_ratio {transform.crop_ratio}: give the smallest width / height first, then "
            "the largest"
        )
    if transform.blur_sigma[0] > transform.blur_sigma[1]:
        raise ConfigError(
            f"{where}.blur_sigma {transform.blur_sigma}: give the least and the largest standard deviation, "
            "in this order"
        )


def _check_weights(data: DataConfig) -> None:
    """Checks the names, signs and steps of weights; round_robin checks that steps can draw something."""
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
                f"{first}; give it one, or 0 to pause the kind"
            )


def _check_mapping(where: str, weights: Mapping[str, float] | None, known: list[str], what: str) -> None:
    """Checks the names in a mapping of weights."""
    for name in weights or {}:
        if name not in known:
            hint = did_you_mean(name, known) or "; there is " + ", ".join(known)
            raise ConfigError(f"{where}: no {what} is called {name!r:.80}{hint}")
