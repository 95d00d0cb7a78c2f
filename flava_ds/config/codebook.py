"""The configuration of the image tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """DALL-E's discrete VAE, the image tokenizer of MIM and MMM-image."""

    hidden_size: Annotated[int, AtLeast(1), AtMost(2**16)] = 256
    """Width of the encoder's first group; each group doubles it."""
    num_groups: Annotated[int, AtLeast(1), AtMost(10)] = 4
    """Groups of blocks; all but the first halve the image size."""
    num_blocks_per_group: Annotated[int, AtLeast(1), AtMost(100)] = 2
    num_channels: Annotated[int, AtLeast(1), AtMost(3)] = 3
    """Channels of an image: RGB."""
    vocab_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 8192
    """Number of codes."""
    image_size: Annotated[int, AtLeast(1), AtMost(2**14)] = 112
    """Pixels along one edge of the codebook's input; the grid is image_size / 2**(num_groups - 1)."""
    decoder_init_size: Annotated[int, AtLeast(1), AtMost(2**16)] = 128
    """Channels at the start of the decoder."""

    @property
    def grid_size(self) -> int:
        """Codes along one edge."""
        return self.image_size // 2 ** (self.num_groups - 1)


def check_codebook(codebook: CodebookConfig) -> None:
    """Raises ConfigError that names the field, the value and the fix."""
    if codebook.num_channels != 3:
        raise ConfigError(
            f"codebook.num_channels is {codebook.num_channels}; images are read as RGB, so it must be 3"
        )
