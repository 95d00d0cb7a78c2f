"""EfficientNet without its last convolution, with ghost batch norms.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", and its
code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.layers.ghost_norm import FixedPrecision, GhostBatchNorm
from flava_ds.layers.patches import normalized

STEM, EPS, SQUEEZE = 32, 1e-3, 0.25


class Stage(NamedTuple):
    """A stage of B0: blocks that share their output channels; the first of them may stride."""

    blocks: int
    channels: int
    kernel: int
    stride: int
    expansion: int


STAGES = (
    Stage(1, 16, 3, 1, 1),
    Stage(2, 24, 3, 2, 6),
    Stage(2, 40, 5, 2, 6),
    Stage(3, 80, 3, 2, 6),
    Stage(3, 112, 5, 1, 6),
    Stage(4, 192, 5, 2, 6),
    Stage(1, 320, 3, 1, 6),
)


def scaled_channels(channels: int, width: float) -> int:
    """Scales and rounds to a multiple of 8, down by 10 % at most."""
    wanted = channels * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found


def scaled_blocks(blocks: int, depth: float) -> int:
    """Scales a stage's number of blocks, rounded up."""
    return math.ceil(blocks * depth)


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has an edge of ceil(edge / stride), padded as in TensorFlow:
    the odd row and column of zeros come last.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding=padding, groups=groups, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            sides: list[int] = []
            for edge in reversed(hidden.shape[-2:]):
                missing = max(0, (-(-edge // stride) - 1) * stride + kernel - edge)
                sides += [missing // 2, missing - missing // 2]
            hidden = F.pad(hidden, sides)
        return super().forward(hidden)


class SqueezeExcite(nn.Module):
    """Scales each channel by a number in (0, 1) that follows from all channels' means: [b c H W] -> same."""

    def __init__(self, channels: int, narrow: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.expand(F.silu(self.reduce(hidden.mean((2, 3), keepdim=True)))).sigmoid()


class InvertedBlock(nn.Module):
    """Widening 1 x 1 convolution, depthwise convolution, squeeze and excitation, narrowing 1 x 1 convolution;
    blocks after a stage's first add their input.

    Shapes:
        hidden  [b c H W] -> [b c' H/s W/s]
        path    [b]  factors of what the block adds (stochastic depth); None for 1
    """

    def __init__(self, inputs: int, outputs: int, stage: Stage, first: bool, norm_group: int):
        super().__init__()
        wide = inputs * stage.expansion
        self.adds = not first
        self.expand_conv = SameConv(inputs, wide) if stage.expansion > 1 else None
        self.expand_norm = GhostBatchNorm(wide, group=norm_group, eps=EPS) if stage.expansion > 1 else None
        self.depthwise_conv = SameConv(wide, wide, stage.kernel, stage.stride if first else 1, groups=wide)
        self.depthwise_norm = GhostBatchNorm(wide, group=norm_group, eps=EPS)
        self.squeeze_excite = SqueezeExcite(wide, max(1, int(inputs * SQUEEZE)))
        self.project_conv = SameConv(wide, outputs)
        self.project_norm = GhostBatchNorm(outputs, group=norm_group, eps=EPS)

    def forward(self, hidden: Tensor, path: Tensor | None = None) -> Tensor:
        found = hidden
        if self.expand_conv is not None and self.expand_norm is not None:
            found = F.silu(self.expand_norm(self.expand_conv(found)))
        found = F.silu(self.depthwise_norm(self.depthwise_conv(found)))
        found = self.project_norm(self.project_conv(self.squeeze_excite(found)))
        if not self.adds:
            return found
        return hidden + (found if path is None else found * path[:, None, None, None].to(found.dtype))


class EfficientNet(FixedPrecision):
    """Pixels to a grid of features with 1/32 of the edges, rounded up.

    Shapes:
        pixel_values  [b 3 H W]  uint8 in [0, 255], or floats that are already normalised
        paths         [b blocks]  see InvertedBlock; None for 1
        returns       [b c H/32 W/32]
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, width: float, depth: float, mean: Sequence[float], std: Sequence[float], norm_group: int
    ):
        super().__init__()
        self.register_buffer("image_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(std), persistent=False)
        channels = scaled_channels(STEM, width)
        self.stem_conv = SameConv(3, channels, 3, 2)
        self.stem_norm = GhostBatchNorm(channels, group=norm_group, eps=EPS)
        self.blocks = nn.ModuleList()
        for stage in STAGES:
            outputs = scaled_channels(stage.channels, width)
            for number in range(scaled_blocks(stage.blocks, depth)):
                self.blocks.append(InvertedBlock(channels, outputs, stage, number == 0, norm_group))
                channels = outputs
        self.channels = channels

    def forward(self, pixel_values: Tensor, paths: Tensor | None = None) -> Tensor:
        pixels = normalized(pixel_values, self.image_mean, self.image_std).to(self.stem_conv.weight.dtype)
        hidden = F.silu(self.stem_norm(self.stem_conv(pixels)))
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, None if paths is None else paths[:, number])
        return hidden

    def flops(self, size: int) -> float:
        """Returns the FLOPs of the convolutions for one image with an edge of `size` pixels."""
        edge = -(-size // 2)
        total = 2.0 * self.stem_conv.weight.numel() * edge**2
        for block in self.blocks:
            for name, own in block.named_modules():
                if not isinstance(own, nn.Conv2d):
                    continue
                edge = -(-edge // own.stride[0])
                seen = 1 if name.startswith("squeeze_excite") else edge
                total += 2.0 * own.weight.numel() * seen**2
        return total


@torch.no_grad()
def initialize_as_efficientnet(module: nn.Module) -> None:
    """Draws convolutions from a normal distribution of variance 2 / (outputs * k^2), as the code does; for
    depthwise ones, outputs count once for all groups. Biases are zero.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=math.sqrt(2 / (part.kernel_size[0] ** 2 * part.out_channels)))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
