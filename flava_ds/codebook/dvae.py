"""The networks of DALL-E's discrete VAE: pixels to logits over codes, and codes to a distribution of pixels.

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
"""Pixels are mapped to [0.1, 0.9], where the logit in the logit-Laplace likelihood is finite."""


def map_pixels(pixels: Tensor) -> Tensor:
    """Maps [0, 1] to [0.1, 0.9], the range of the encoder's input and of the likelihood."""
    return (1 - 2 * PIXEL_MARGIN) * pixels + PIXEL_MARGIN


def unmap_pixels(pixels: Tensor) -> Tensor:
    """Inverts `map_pixels`, clamping to [0, 1]."""
    return ((pixels - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


class Conv2d(nn.Conv2d):
    """A convolution that keeps the grid size, initialised like DALL-E's.

    Biases are zero, weights normal with standard deviation 1/sqrt(fan-in).
    """

    bias: Tensor  # there is always one

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=fan_in**-0.5)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """Adds a bottleneck of four ReLU-convolutions, scaled by 1 / num_layers**2, to its input.

    With `upsample`, it doubles the grid first. That repeats pixels, so it commutes with ReLU and with the 1x1
    convolutions that follow; both are computed on the small grid.

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
            raise ValueError("upsampling moves past the first convolution, which must be 1x1")
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
            shortcut = F.interpolate(shortcut, scale_factor=2, mode="nearest")
            residual = F.interpolate(residual, scale_factor=2, mode="nearest")
        for conv in (self.conv_2, self.conv_3, self.conv_4):
            residual = conv(F.relu(residual, inplace=True))
        return torch.add(shortcut, residual, alpha=self.post_gain)


class CodebookEncoder(nn.Module):
    """Maps pixels to logits over the codes, with one grid cell per 2**(num_groups - 1) pixels.

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
        """Computes the logits, halving the grid between groups by max-pooling."""
        hidden = self.input(pixels)
        for i, group in enumerate(self.groups):
            hidden = group(F.max_pool2d(hidden, 2) if i else hidden)
        return self.output(F.relu(hidden))


class CodebookDecoder(nn.Module):
    """Maps codes, or distributions over codes, to a logit-Laplace distribution of each pixel value.

    Shapes:
        code_weights  [b v gh gw]   one-hot, or relaxed during training
        returns       [b 2*c H W]   first the means in logit space, then the log scales
    """

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        widths = [config.hidden_size * 2**i for i in reversed(range(config.num_groups))]
        self.input = Conv2d(config.vocab_size, config.decoder_init_size, 1)
        inputs = [config.decoder_init_size, *widths]
        self.groups = nn.ModuleList(
            _group(before, width, config, (1, 3, 3, 3), upsample=i > 0)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=False))
        )
        self.output = Conv2d(widths[-1], 2 * config.num_channels, 1)

    def forward(self, code_weights: Tensor) -> Tensor:
        """Computes the parameters, doubling the grid between groups by repeating pixels."""
        return self.from_embeddings(self.input(code_weights))

    def from_embeddings(self, hidden: Tensor) -> Tensor:
        """Decodes the output of the first convolution: [b d gh gw] -> [b 2*c H W]."""
        for group in self.groups:
            hidden = group(hidden)
        return self.output(F.relu(hidden))

    def embed(self, codes: Tensor) -> Tensor:
        """Looks up codes, equal to the first convolution on one-hot vectors: [b gh gw] -> [b d gh gw]."""
        rows = F.embedding(codes, self.input.weight[:, :, 0, 0].T)
        return rearrange(rows, "b gh gw d -> b d gh gw") + self.input.bias[:, None, None]


def _group(
    in_channels: int,
    out_channels: int,
    config: CodebookConfig,
    kernel_sizes: tuple[int, int, int, int],
    upsample: bool = False,
) -> nn.Sequential:
    """Builds the blocks of one resolution; the first changes the width and, with `upsample`, the grid."""
    num_layers = config.num_groups * config.num_blocks_per_group
    blocks = [Block(in_channels, out_channels, kernel_sizes, num_layers, upsample)]
    for _ in range(config.num_blocks_per_group - 1):
        blocks.append(Block(out_channels, out_channels, kernel_sizes, num_layers))
    return nn.Sequential(*blocks)
