"""ALIGN's configuration: an EfficientNet, a BERT, and a projection of the text into the image's space.

Source: Jia et al. 2021, "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
Supervision"; sizes of coyo-align, the code in public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from flava_ds.config.bounds import Above, AtLeast, AtMost, Below, Share
from flava_ds.config.encoders import BertTextConfig, Deviation, NormallyInitialized, Pixels

Factor = Annotated[float, Above(0), AtMost(100)]


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """EfficientNet-B7 by default, without its last convolution."""

    image_size: Pixels = 289
    """Pixels along one edge."""
    width: Factor = 2.0
    """Factor of B0's channels, which are rounded to multiples of 8."""
    depth: Factor = 3.1
    """Factor of B0's blocks per stage, rounded up."""
    drop_path: Annotated[float, AtLeast(0), Below(1)] = 0.2
    """Probability that what the last block adds is left out of a sample (stochastic depth); it grows from 0
    in proportion to a block's number, and the rest is scaled up.
    """
    image_mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    """Per channel, on the [0, 1] scale."""
    image_std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    """Per channel, on the same scale."""
    norm_group: Annotated[int, AtLeast(2), AtMost(2**16)] = 16
    """Consecutive samples that batch normalisation normalises together; micro-batches are whole groups, so
    the result does not depend on the ranks.
    """
    norm_momentum: Annotated[float, AtLeast(0), Below(1)] = 0.99
    """Of the running moments, per update, by which an evaluation normalises."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig(NormallyInitialized, type="align"):
    """Two towers and a projection of the text, as wide as the image's features.

    The defaults are the public model, EfficientNet-B7 and BERT-base: 171,527,249 parameters. Other programs
    count 590,592 more, of a pooler that nothing reads.
    """

    image: EfficientNetConfig = field(default_factory=EfficientNetConfig)
    text: BertTextConfig = field(default_factory=BertTextConfig)
    temperature_init: Annotated[float, Above(0), AtMost(1)] = 1.0
    """What similarities are divided by at first; it is trained."""

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    folder: ClassVar[str | None] = "flava_ds.families.align"
    layouts: ClassVar[str | None] = "flava_ds.families.align.hf"
    views: ClassVar[tuple[str, ...]] = ("image", "text")

    @property
    def projection_dim(self) -> int:
        """Features of an image, and of a projected text."""
        from flava_ds.layers.efficientnet import STAGES, scaled_channels

        return scaled_channels(STAGES[-1].channels, self.image.width)

    def samples_together(self, content: str) -> int:
        return self.image.norm_group

    def shape_of(self, view: str) -> Any:
        self.check_view(view)
        return getattr(self, view)

    def check(self, config: Any) -> None:
        self.text.check("model.text")
        self.refuse_masked_shares(config)
