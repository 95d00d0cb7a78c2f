"""The two networks of DALL-E's discrete VAE: pixels to logits over codes, and codes to a distribution of
pixels.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", appendix A; FLAVA, section 3.1 (image
tokenizer).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flava_ds.config import CodebookConfig

PIXEL_MARGIN = 0.1
"""Pixels are squeezed into [0.1, 0.9], where the logit of the logit-Laplace likelihood is finite."""


def map_pixels(pixels: Tensor) -> Tensor:
    """Squeezes [0, 1] into [0.1, 0.9], the range that the encoder reads and the likelihood is defined on."""
    return (1 - 2 * PIXEL_MARGIN) * pixels + PIXEL_MARGIN


def unmap_pixels(pixels: Tensor) -> Tensor:
    """Undoes `map_pixels`; what lies outside is cut to [0, 1]."""
    return ((pixels - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


class Conv2d(nn.Conv2d):
    """Convolves without changing the grid; starts with zero biases and weights of std 1/sqrt(fan-in), as
    DALL-E does.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=fan_in**-0.5)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """Adds a bottleneck of four ReLU-convolutions, scaled by 1 / num_layers**2, to its input; may double the
    grid first.

    Doubling repeats pixels, so it commutes with ReLU and with the 1x1 convolutions that follow it: both are
    computed on the small grid.

    Shapes:
        hidden   [b in_channels s s]
        returns  [b out_channels s s], or [b out_channels 2*s 2*s] if upsample
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: tuple[int, int, int, int],
        num_layers: int,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if upsample and kernel_sizes[0] != 1:
            raise ValueError("upsampling is moved behind the first convolution, which must be 1x1")
        self.upsample = upsample
        bottleneck = out_channels // 4
        self.post_gain = 1 / num_layers**2
        self.id_path = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.conv_1 = Conv2d(in_channels, bottleneck, kernel_sizes[0])
        self.conv_2 = Conv2d(bottleneck, bottleneck, kernel_sizes[1])
        self.conv_3 = Conv2d(bottleneck, bottleneck, kernel_sizes[2])
        self.conv_4 = Conv2d(bottleneck, out_channels, kernel_sizes[3])

    def forward(self, hidden: Tensor) -> Tensor:
        """Computes shortcut + gain * residual."""
        shortcut, residual = self.id_path(hidden), self.conv_1(F.relu(hidden))
        if self.upsample:
            shortcut, residual = (
                F.interpolate(x, scale_factor=2, mode="nearest") for x in (shortcut, residual)
            )
        for conv in (self.conv_2, self.conv_3, self.conv_4):
            residual = conv(F.relu(residual, inplace=True))
        return torch.add(shortcut, residual, alpha=self.post_gain)


class CodebookEncoder(nn.Module):
    """Turns mapped pixels into logits over the codes, one grid cell per 2**(num_groups - 1) pixels.

    Shapes:
        pixels   [b c H W]    in [0.1, 0.9]
        returns  [b v gh gw]
    """

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        widths = [config.hidden_size * 2**i for i in range(config.num_groups)]
        self.input = Conv2d(config.num_channels, widths[0], 7)
        self.groups = nn.ModuleList(
            _group(before, width, config, (3, 3, 3, 1))
            for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        self.output = Conv2d(widths[-1], config.vocab_size, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Halves the grid between groups by max-pooling."""
        hidden = self.input(pixels)
        for i, group in enumerate(self.groups):
            hidden = group(F.max_pool2d(hidden, 2) if i else hidden)
        return self.output(F.relu(hidden))


class CodebookDecoder(nn.Module):
    """Turns codes, or distributions over codes, into the parameters of a logit-Laplace distribution of each
    pixel value.

    Shapes:
        code_weights  [b v gh gw]   one-hot, or relaxed during training
        returns       [b 2*c H W]   first the means in logit space, then the log scales
    """

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        widths = [config.hidden_size * 2**i for i in reversed(range(config.num_groups))]
        self.input = Conv2d(config.vocab_size, config.decoder_init_size, 1)
        self.groups = nn.ModuleList(
            _group(before, width, config, (1, 3, 3, 3), upsample=i > 0)
            for i, (before, width) in enumerate(
                zip([config.decoder_init_size, *widths], widths, strict=False)
            )
        )
        self.output = Conv2d(widths[-1], 2 * config.num_channels, 1)

    def forward(self, code_weights: Tensor) -> Tensor:
        """Doubles the grid between groups by repeating pixels."""
        return self.from_embeddings(self.input(code_weights))

    def from_embeddings(self, hidden: Tensor) -> Tensor:
        """Decodes what the first convolution makes of the codes: [b d gh gw] -> [b 2*c H W]."""
        for group in self.groups:
            hidden = group(hidden)
        return self.output(F.relu(hidden))

    def embed(self, codes: Tensor) -> Tensor:
        """Looks codes up, which equals the first convolution on their one-hot vectors: [b gh gw] -> [b d gh
        gw].
        """
        return (
            rearrange(F.embedding(codes, self.input.weight[:, :, 0, 0].T), "b gh gw d -> b d gh gw")
            + self.input.bias[:, None, None]
        )


def _group(
    in_channels: int,
    out_channels: int,
    config: CodebookConfig,
    kernel_sizes: tuple[int, int, int, int],
    upsample: bool = False,
) -> nn.Sequential:
    """Builds the blocks of one resolution; the first one changes the width and, if asked, doubles
    the grid."""
    num_layers = config.num_groups * config.num_blocks_per_group
    first = Block(in_channels, out_channels, kernel_sizes, num_layers, upsample)
    return nn.Sequential(
        first,
        *(
            Block(out_channels, out_channels, kernel_sizes, num_layers)
            for _ in range(config.num_blocks_per_group - 1)
        ),
    )
