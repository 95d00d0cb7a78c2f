"""The image tokenizer's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """DALL-E's discrete VAE, the image tokenizer of MIM and MMM-image."""

    hidden_size: int = 256
    num_groups: int = 4
    num_blocks_per_group: int = 2
    num_channels: int = 3
    vocab_size: int = 8192
    image_size: int = 112
    """Pixels along one edge of the codebook's view; the grid is image_size / 2**(num_groups - 1)."""
    decoder_init_size: int = 128

    @property
    def grid_size(self) -> int:
        """Codes along one edge."""
        return self.image_size // 2 ** (self.num_groups - 1)


def check_codebook(codebook: CodebookConfig) -> None:
    """Raises ConfigError naming the field, the value and the way out."""
    for entry in fields(codebook):
        value = getattr(codebook, entry.name)
        if not 1 <= value < math.inf:
            raise ConfigError(f"codebook.{entry.name} is {value}; it must be at least 1")
    if codebook.num_channels != 3:
        raise ConfigError(f"codebook.num_channels is {codebook.num_channels}; pictures are read as RGB, so it must be 3")
