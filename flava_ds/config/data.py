"""The configuration of the data: sources, their order and how to read them. Exported by `flava_ds.config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from flava_ds.config.bounds import Above, AtLeast, AtMost, Below, Between, Range, Share
from flava_ds.config.readers import ReaderConfig
from flava_ds.errors import ConfigError, number_of

Portion = Annotated[float, Range(0, 1, open_least=True)]
"""A share above zero."""
Ratio = Annotated[float, Above(0), AtMost(100)]
Weight = Annotated[float, AtLeast(0), AtMost(10**9)]
SampleKind = Literal["image", "text", "pair"]
"""What the samples of a source are."""


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

    kind: SampleKind
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
    regions_key: str | None = None
    """Member suffix of the regions that a detector found in each image, e.g. 'regions.safetensors', which
    `flava-ds prepare regions` writes. A source with regions reads them in place of its images.
    """
    max_regions: Annotated[int, AtLeast(1), AtMost(2**16)] = 100
    """Maximum regions of a sample, the whole image included; a sample with more is unusable."""
    task: str | None = None
    """For a family with several tasks, the one of these samples: the kind of its steps. None: `kind`."""
    targets_key: str | None = None
    """Member suffix of each sample's labels, e.g. 'targets.safetensors', for objectives that read labels (see
    docs/data.md).
    """
    max_targets: Annotated[int, AtLeast(1), AtMost(2**16)] = 100
    """Maximum labels of a sample, such as the objects in its image; a sample with more is unusable."""
    identity_key: str | None = None
    """Field of the sample's .json, a text or an integer, that tells what its picture shows. Pairs with the
    same value are positives and never negatives of each other, for objectives of type itc and itm_hard; None:
    every pair is its own.
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

    @property
    def step_kind(self) -> str:
        """The kind of the steps that draw it."""
        return self.task or self.kind


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
    """A name under flava_ds/data/vocab, the path of a WordPiece vocab.txt or of a tokenizer.json, or
    "clip_bpe" for CLIP's byte pairs (extra `clip`).
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
    """Changes of the weights during the run, by ascending step, which a file or a recipe names. A run that
    goes on may have other ones from its checkpoint's step on.
    """
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
    """Seconds without a batch before a loader process counts as hung and the run stops; 0 waits forever. A
    process that seeks its place in a stream is waited for as long as it gets on.
    """


KINDS = ("pair", "image", "text")
"""The possible contents of a source's samples."""

UNCHANGED = ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
"""The transform that precomputed codes require."""

WHOLE = ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.01, 100.0))
"""The whole image, squeezed to a square: targets with boxes require such geometry."""


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
    drawn = set().union(*(drawn_names(data, weights, kinds) for _, weights, kinds in weights_by_stage(data)))
    return {name: source for name, source in data.sources.items() if name in drawn}


def drawn_names(
    data: DataConfig, weights: Mapping[str, float], kind_weights: Mapping[str, float] | None
) -> set[str]:
    """Returns the names of the sources that a stage draws."""
    return {
        name
        for name, source in data.sources.items()
        if weights[name] and (kind_weights is None or kind_weights.get(source.step_kind))
    }


def micro_batch(
    name: str,
    size: int,
    world_size: int,
    accumulation: int,
    *,
    own: bool,
    together: int,
    masked_share: float,
) -> int:
    """Returns the samples per micro-step on one rank, of source `name` with a global batch of `size`,
    its `own` or that of all sources.

    The model normalises groups of `together` samples.

    Raises: ConfigError when the global batch is not divisible, or too small for the masked share.
    """
    parts = world_size * accumulation
    option = f"--data.sources.{name}" if own else "--training"
    if size % parts:
        split = f"{number_of(world_size, 'rank')} x {number_of(accumulation, 'accumulation step')}"
        raise ConfigError(
            f"source '{name}': global_batch_size {size} is not divisible by {split}; set "
            f"{option}.global-batch-size to a multiple of {parts}"
        )
    if size // parts % together:
        raise ConfigError(
            f"source '{name}': micro-batches of {size // parts} samples are no whole groups of {together}, "
            f"which the model normalises together; set {option}.global-batch-size to a "
            f"multiple of {parts * together}, or change model.image.norm_group"
        )
    if size // parts * masked_share < 1:
        raise ConfigError(
            f"source '{name}': masked_share {masked_share:g} of {size // parts} samples on each rank leaves "
            f"none to mask; use a share of at least {parts / size:g} or a larger global_batch_size"
        )
    return size // parts
