"""FLAVA's configuration: three encoders, four projections, and what batches of its kinds contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from flava_ds.config.bounds import Above, AtLeast, AtMost, Share
from flava_ds.config.family import FamilyConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.config import Config
    from flava_ds.data.plan import BatchPlan
    from flava_ds.data.tokenizer import WordPieceTokenizer
    from flava_ds.training.task import Task


Width = Annotated[int, AtLeast(1), AtMost(2**17)]
"""Features of a token."""
Deviation = Annotated[float, Above(0), AtMost(10)]
"""A standard deviation."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """ViT over patches (paper, Table A.1)."""

    image_size: Annotated[int, AtLeast(1), AtMost(2**14)] = 224
    """Pixels along one edge."""
    patch_size: Annotated[int, AtLeast(1), AtMost(2**14)] = 16
    """Pixels along one edge of a patch."""
    num_channels: Annotated[int, AtLeast(1), AtMost(3)] = 3
    """Of a picture: RGB."""
    hidden_size: Width = 768
    num_hidden_layers: Annotated[int, AtLeast(1), AtMost(1000)] = 12
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 12
    """They divide hidden_size."""
    intermediate_size: Width = 3072
    """Width of the MLP."""
    layer_norm_eps: Annotated[float, AtLeast(0), AtMost(1)] = 1e-12
    image_mean: tuple[Share, Share, Share] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, on the [0, 1] scale; CLIP's, as both published implementations use."""
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


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """BERT embeddings in front of the same pre-norm transformer."""

    vocab_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 30522
    """Entries of the tokenizer's vocabulary."""
    max_position_embeddings: Annotated[int, AtLeast(1), AtMost(2**20)] = 512
    """Tokens of the longest text."""
    type_vocab_size: Annotated[int, AtLeast(1), AtMost(1024)] = 2
    """Rows of the table of token types, of which the first is used."""
    pad_token_id: Annotated[int, AtLeast(0), AtMost(2**24)] = 0
    hidden_size: Width = 768
    num_hidden_layers: Annotated[int, AtLeast(1), AtMost(1000)] = 12
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 12
    """They divide hidden_size."""
    intermediate_size: Width = 3072
    """Width of the MLP."""
    layer_norm_eps: Annotated[float, AtLeast(0), AtMost(1)] = 1e-12


@dataclass(frozen=True, kw_only=True)
class MultimodalEncoderConfig:
    """Transformer over [CLS_M | image | text]; adds no position or modality embedding."""

    hidden_size: Width = 768
    num_hidden_layers: Annotated[int, AtLeast(1), AtMost(1000)] = 6
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 12
    """They divide hidden_size."""
    intermediate_size: Width = 3072
    """Width of the MLP."""
    layer_norm_eps: Annotated[float, AtLeast(0), AtMost(1)] = 1e-12


@dataclass(frozen=True, kw_only=True)
class FlavaConfig(FamilyConfig, type="flava"):
    """The three encoders and the four projections between and above them."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    multimodal: MultimodalEncoderConfig = field(default_factory=MultimodalEncoderConfig)
    projection_dim: Width = 768
    """Width of the contrastive space. 768 loads the released weights; the paper's table says 512."""
    logit_scale_init: Annotated[float, AtLeast(0), AtMost(10)] = 2.6592
    """Logarithm of the first scale of the contrastive logits: log(1 / 0.07)."""
    poolers: bool = False
    """Keep the three dense + tanh poolers that no pre-training loss uses (frozen), so that Hugging Face
    checkpoints pass through whole.
    """
    initializer_range: Annotated[float, AtLeast(0), AtMost(1)] = 0.02
    """Standard deviation of the first weights."""

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair", "image": "image", "text": "text"}

    @property
    def max_tokens(self) -> int:
        """The longest text that the model takes, special tokens included."""
        return self.text.max_position_embeddings

    @property
    def image_size(self) -> int:
        """The edge of the pictures that the model takes, in pixels."""
        return self.image.image_size

    @property
    def num_patches(self) -> int:
        """The patches of a picture."""
        return self.image.num_patches

    def load_tokenizer(self, config: Any) -> WordPieceTokenizer:
        """Loads the WordPiece vocabulary, whose special tokens the masked objectives need."""
        from flava_ds.data.tokenizer import WordPieceTokenizer

        return WordPieceTokenizer(config.data.vocabulary).fitting(self.text.vocab_size)

    def offers(self, task: Any, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
        """Returns FLAVA's capabilities: vectors, states, log odds of pairs and masked predictions by its
        heads.
        """
        from flava_ds.families.flava.capabilities import offers

        return offers(task, config)

    def build(self, config: Any) -> Task:
        """Builds FLAVA with its objectives."""
        from flava_ds.families.flava.task import build_task

        return build_task(config)

    def plan(self, config: Any, source: Any) -> BatchPlan:
        """Says which pictures, texts and masks a batch of `source` has."""
        from flava_ds.families.flava.plans import plan

        return plan(config, source)

    def shape_of(self, view: str) -> ImageEncoderConfig | TextEncoderConfig | MultimodalEncoderConfig:
        """Returns the encoder's configuration of a view."""
        return getattr(self, view.removesuffix("_masked"))

    def check(self, config: Any) -> None:
        check_encoders(self)
        predicts = config.predicts_image_codes
        image, codebook = self.image, config.codebook
        wanted = image.grid_size * 2 ** (codebook.num_groups - 1)
        if predicts and codebook.image_size != wanted:
            raise ConfigError(
                f"codebook.image_size {codebook.image_size} gives a {codebook.grid_size} x "
                f"{codebook.grid_size} grid of "
                f"codes, but the image encoder has {image.grid_size} x {image.grid_size} patches; use "
                f"codebook.image_size {wanted}"
            )


def flava_objectives(**changed: ObjectiveConfig) -> dict[str, ObjectiveConfig]:
    """Returns the six objectives of the paper by name, those in `changed` instead of the default's."""
    from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
    from flava_ds.objectives.itm import ImageTextMatchingConfig
    from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
    from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig

    return {
        "global_contrastive": GlobalContrastiveConfig(),
        "mim": MaskedImageConfig(),
        "mlm": MaskedTextConfig(),
        "mmm_image": MultimodalMaskedImageConfig(),
        "mmm_text": MultimodalMaskedTextConfig(),
        "itm": ImageTextMatchingConfig(),
        **changed,
    }


def check_encoders(model: FlavaConfig) -> None:
    """Raises ConfigError naming the field of an encoder, the value and the way out."""
    encoders: dict[str, ImageEncoderConfig | TextEncoderConfig | MultimodalEncoderConfig] = {
        "model.image": model.image,
        "model.text": model.text,
        "model.multimodal": model.multimodal,
    }
    for name, encoder in encoders.items():
        if encoder.hidden_size % encoder.num_attention_heads:
            raise ConfigError(
                f"{name}: hidden_size {encoder.hidden_size} does not divide by num_attention_heads "
                f"{encoder.num_attention_heads}"
            )
    image, text = model.image, model.text
    if image.image_size % image.patch_size:
        raise ConfigError(
            f"model.image: image_size {image.image_size} does not divide by patch_size {image.patch_size}"
        )
    if text.pad_token_id >= text.vocab_size:
        raise ConfigError(
            f"model.text.pad_token_id {text.pad_token_id} is none of model.text.vocab_size "
            f"{text.vocab_size} entries"
        )
    if image.num_channels != 3:
        raise ConfigError(
            f"model.image.num_channels is {image.num_channels}; pictures are read as RGB, so it must be 3"
        )


def flava_of(config: Config) -> FlavaConfig:
    """Returns a configuration's model, for what only FLAVA's own methods call."""
    return cast(FlavaConfig, config.model)
