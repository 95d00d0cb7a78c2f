"""Shapes of transformer encoders, for the families that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypedDict

from flava_ds.config.bounds import Above, AtLeast, AtMost, Below, Share
from flava_ds.config.family import FamilyConfig
from flava_ds.errors import ConfigError

Width = Annotated[int, AtLeast(1), AtMost(2**17)]
"""Features per token."""
Pixels = Annotated[int, AtLeast(1), AtMost(2**14)]
Epsilon = Annotated[float, AtLeast(0), AtMost(1)]
"""Epsilon of a LayerNorm."""
Dropped = Annotated[float, AtLeast(0), Below(1)]
"""Probability that an element is dropped."""
DETECTORS = ("demo",)
"""Detectors of regions that the package contains, by name."""
Deviation = Annotated[float, Above(0), AtMost(10)]
"""A standard deviation."""


class Shape(TypedDict):
    """The fields of an EncoderConfig that all encoders of a model may share, to be passed as `**shape`."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A stack of transformer blocks. The defaults describe a base model."""

    hidden_size: Width = 768
    num_hidden_layers: Annotated[int, AtLeast(1), AtMost(1000)] = 12
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 12
    """Attention heads; they must divide hidden_size."""
    intermediate_size: Width = 3072
    """Width of the MLP."""
    layer_norm_eps: Epsilon = 1e-12

    def check(self, name: str) -> None:
        """Raises ConfigError for values that contradict each other; `name` is the section, for messages."""
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{name}: hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )


def shape_with(shape: EncoderConfig, layers: int) -> EncoderConfig:
    """Returns the shape of a stack of so many layers like those of `shape`."""
    return EncoderConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        layer_norm_eps=shape.layer_norm_eps,
    )


@dataclass(frozen=True, kw_only=True)
class VisionEncoderConfig(EncoderConfig):
    """A ViT over the patches of a square RGB image."""

    image_size: Pixels = 224
    """Pixels along one edge."""
    patch_size: Pixels = 16
    """Pixels along one edge of a patch."""
    num_channels: Annotated[int, AtLeast(1), AtMost(3)] = 3
    """Channels of an image: RGB."""
    image_mean: tuple[Share, Share, Share] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, on the [0, 1] scale; the default is CLIP's."""
    image_std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Per channel, on the same scale."""

    @property
    def grid_size(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        return self.grid_size**2

    def check(self, name: str) -> None:
        super().check(name)
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"{name}: image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )
        if self.num_channels != 3:
            raise ConfigError(
                f"{name}.num_channels is {self.num_channels}; images are read as RGB, so it must be 3"
            )


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(EncoderConfig):
    """A transformer over token embeddings and learned positions."""

    vocab_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 30522
    """Entries of the tokenizer's vocabulary."""
    max_position_embeddings: Annotated[int, AtLeast(1), AtMost(2**20)] = 512
    """Maximum tokens of a text."""


@dataclass(frozen=True, kw_only=True)
class BertTextConfig(TextEncoderConfig):
    """BERT's embeddings, whose token types tell the two segments of a text apart, below a transformer."""

    type_vocab_size: Annotated[int, AtLeast(2), AtMost(1024)] = 2
    """Rows of the token-type table: one for the first segment, one for the second."""
    hidden_dropout: Dropped = 0.0
    """Probability that training drops an element of the embeddings, and of what attention and MLP add, drawn
    from the samples' seeds. Probabilities of attention are not dropped.
    """


@dataclass(frozen=True, kw_only=True)
class ConvStemConfig:
    """The stem and first stages of a ResNet, whose last grid becomes the patches; ResNet-101's by default."""

    image_size: Pixels = 224
    """Pixels along one edge."""
    width: Width = 64
    """Channels of the first convolution; a stage's blocks have four times as many, twice those before it."""
    blocks: tuple[Annotated[int, AtLeast(1), AtMost(200)], ...] = (3, 4, 23)
    """Blocks of each stage."""
    image_mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    """Per channel, on the [0, 1] scale."""
    image_std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    """Per channel, on the same scale."""
    dilated: bool = False
    """The last stage keeps the edges of its input and spreads its convolutions instead (DC5)."""
    frozen_stages: Annotated[int, AtLeast(0), AtMost(8)] | None = None
    """The stem and this many stages stay as they are, which needs weights from elsewhere; None trains all."""
    norm_group: Annotated[int, AtLeast(2), AtMost(2**16)] | None = 16
    """Consecutive samples that batch normalisation normalises together; micro-batches are whole groups, so
    the result does not depend on the ranks. None normalises by fixed moments, which only make sense with
    weights from elsewhere.
    """
    norm_momentum: Annotated[float, AtLeast(0), Below(1)] = 0.99
    """Of the running moments, per update, by which an evaluation normalises."""

    @property
    def patch_size(self) -> int:
        """Pixels along one edge of a patch: the stride of all stages together."""
        return 2 ** (len(self.blocks) + 1 - self.dilated)

    @property
    def grid_size(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        return self.grid_size**2

    def check(self, name: str) -> None:
        """Raises ConfigError for values that contradict each other; `name` is the section, for messages."""
        if not self.blocks:
            raise ConfigError(f"{name}.blocks is empty; give the blocks of at least one stage")
        if (self.frozen_stages or 0) > len(self.blocks):
            raise ConfigError(
                f"{name}.frozen_stages is {self.frozen_stages}, but there are {len(self.blocks)} stages"
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"{name}: image_size {self.image_size} is not divisible by {self.patch_size}, the stride of "
                f"{len(self.blocks)} stages"
            )


@dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """What a model reads of an image in place of its pixels: the regions that a detector found."""

    feature_size: Width = 2048
    """Features of a region; the default is that of Faster R-CNN on Visual Genome (Anderson et al. 2018)."""
    num_classes: Annotated[int, AtLeast(1), AtMost(2**24)] = 1601
    """Classes of the detector, its background included."""
    image_size: Pixels = 224
    """Edge of the square images that evaluations give to the detector, in pixels; not used in training."""


@dataclass(frozen=True, kw_only=True)
class NormallyInitialized(FamilyConfig):
    """A family whose linear layers and tables start from a normal distribution, as BERT's do."""

    initializer_range: Annotated[float, AtLeast(0), AtMost(1)] = 0.02
    """Standard deviation of the initial weights. The published 0.02 is for a width of 768: what a layer of
    another width adds to its input is as strong if this follows 1 / sqrt(width), e.g. 0.04 for 192.
    """


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig(FamilyConfig):
    """A family with an image encoder and a text encoder."""

    image: VisionEncoderConfig = field(default_factory=VisionEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)

    def check(self, config: object) -> None:
        self.image.check("model.image")
        self.text.check("model.text")


@dataclass(frozen=True, kw_only=True)
class RegionTextConfig(NormallyInitialized):
    """A family that reads texts and the regions of images, and no pixels in training."""

    image: RegionsConfig = field(default_factory=RegionsConfig)
    text: BertTextConfig = field(default_factory=BertTextConfig)
    detector: str | None = None
    """Weights of the detector whose regions it reads, or "demo", or a folder of regions that were found
    before; only evaluations on images need it.
    """

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    reads_whole_image: ClassVar[bool] = False
    """Whether the published model, too, reads the whole image as its first region."""

    @property
    def image_size(self) -> int:
        return 0 if self.detector is None else self.image.image_size

    @property
    def regions(self) -> RegionsConfig:
        return self.image

    def check(self, config: Any) -> None:
        self.text.check("model.text")
        self.refuse_masked_shares(config)
        self.refuse_codes(config)
