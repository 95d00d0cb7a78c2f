"""CLIP's configuration: an image tower, a causal text tower, and a projection of each into one space.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", and its
code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.family import FamilyConfig
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.config import Config
    from flava_ds.data.plan import BatchPlan, Tokenizer
    from flava_ds.training.task import Task

Size = Annotated[int, AtLeast(1), AtMost(2**20)]
Small = Annotated[float, AtLeast(0), AtMost(1)]


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """ViT with a LayerNorm before the first block and one behind the last; patches are projected without
    bias.
    """

    image_size: Size = 224
    patch_size: Size = 32
    num_channels: Size = 3
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    layer_norm_eps: Small = 1e-5
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, on the [0, 1] scale."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid_size(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        return self.grid_size**2


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Transformer in which a token attends to itself and to those before it; a text's last token stands for
    it.
    """

    vocab_size: Size = 49_408
    max_position_embeddings: Size = 77
    hidden_size: Size = 512
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 8
    intermediate_size: Size = 2048
    layer_norm_eps: Small = 1e-5


@dataclass(frozen=True, kw_only=True)
class ClipConfig(FamilyConfig, type="clip"):
    """Two towers and two projections without bias."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    projection_dim: Size = 512
    logit_scale_init: Annotated[float, AtLeast(0), AtMost(10)] = 2.6592
    """log(1 / 0.07)."""
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"
    """Of both towers: x * sigmoid(1.702 x) as published; open_clip trains with the erf form where a model's
    name does not end in -quickgelu.
    """

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    layouts: ClassVar[str | None] = "flava_ds.families.clip.hf"

    @property
    def max_tokens(self) -> int:
        """The longest text that the model takes, special tokens included."""
        return self.text.max_position_embeddings

    @property
    def image_size(self) -> int:
        """The edge of the pictures that the model takes, in pixels."""
        return self.image.image_size

    def load_tokenizer(self, config: Any) -> Tokenizer:
        """Loads CLIP's byte pairs, or another vocabulary that is named."""
        from flava_ds.data.tokenizer import load_tokenizer

        return load_tokenizer(config.data.vocabulary).fitting(self.text.vocab_size)

    def offers(self, task: Any, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
        """Returns CLIP's capability: image and text vectors in one space."""
        from flava_ds.families.clip.capabilities import offers

        return offers(task, config)

    def build(self, config: Any) -> Task:
        """Builds CLIP with its objectives."""
        from flava_ds.families.clip.task import build_task

        return build_task(config)

    def plan(self, config: Any, source: Any) -> BatchPlan:
        """Says that a batch has one picture and one text of each sample, and nothing else."""
        from flava_ds.data.plan import BatchPlan
        from flava_ds.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(config.data.vocabulary).fitting(self.text.vocab_size)
        views = {"pixel_values": self.image.image_size}
        return BatchPlan(kind=source.kind, views=views, tokenizer=tokenizer, max_tokens=source.max_tokens)

    def shape_of(self, view: str) -> ImageTowerConfig | TextTowerConfig:
        """Returns the tower's configuration of a view. Raises: ConfigError when an objective asks for another
        view.
        """
        if view not in ("image", "text"):
            raise ConfigError(
                f"an objective reads the view '{view}', and the family 'clip' has image and text alone; "
                "remove that objective, or set its weight to 0"
            )
        return getattr(self, view)

    def check(self, config: Any) -> None:
        image = self.image
        for name, part in (("image", image), ("text", self.text)):
            if part.hidden_size % part.num_attention_heads:
                raise ConfigError(
                    f"model.{name}: hidden_size {part.hidden_size} does not divide by "
                    f"num_attention_heads {part.num_attention_heads}"
                )
        if image.image_size % image.patch_size:
            raise ConfigError(
                f"model.image: image_size {image.image_size} does not divide by patch_size {image.patch_size}"
            )
        if not min(image.image_std) > 0:
            raise ConfigError(f"model.image.image_std is {image.image_std}; each must be above 0")
        if image.num_channels != 3:
            raise ConfigError(
                f"model.image.num_channels is {image.num_channels}; pictures are read as RGB, so it must be 3"
            )
        for name, source in config.data.sources.items():
            if source.masked_share != 1 or source.image_codes_key:
                unread = "image_codes_key" if source.image_codes_key else "masked_share"
                raise ConfigError(
                    f"source '{name}': {unread} is for masked objectives, which the family 'clip' does "
                    "not have; leave it out"
                )


def clip_of(config: Config) -> ClipConfig:
    """Returns a configuration's model, for what only CLIP's own methods call."""
    return cast(ClipConfig, config.model)


def vit_b_32(**changed: Any) -> ClipConfig:
    """Returns CLIP's ViT-B/32: 151,277,313 parameters."""
    return ClipConfig(**changed)


def vit_b_16(**changed: Any) -> ClipConfig:
    """Returns CLIP's ViT-B/16: 149,620,737 parameters."""
    return ClipConfig(**{"image": ImageTowerConfig(patch_size=16), **changed})


def vit_l_14(**changed: Any) -> ClipConfig:
    """Returns CLIP's ViT-L/14: 427,616,513 parameters."""
    image = ImageTowerConfig(
        patch_size=14, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    text = TextTowerConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    return ClipConfig(**{"image": image, "text": text, "projection_dim": 768, **changed})
