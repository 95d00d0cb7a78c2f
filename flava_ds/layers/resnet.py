"""The stem and the first stages of a ResNet, from torchvision's blocks, with ghost or frozen batch norms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.layers.ghost_norm import FixedPrecision, FrozenBatchNorm, GhostBatchNorm
from flava_ds.layers.patches import normalized

STEM_STRIDE = 4


class StagesShape(Protocol):
    """What the stages need of an image tower's configuration."""

    @property
    def width(self) -> int: ...

    @property
    def blocks(self) -> Sequence[int]: ...

    @property
    def image_mean(self) -> Sequence[float]: ...

    @property
    def image_std(self) -> Sequence[float]: ...

    @property
    def norm_group(self) -> int | None: ...

    @property
    def dilated(self) -> bool: ...

    @property
    def frozen_stages(self) -> int | None: ...


class ResNetStages(FixedPrecision):
    """Pixels to a grid of features; each stage after the first halves its edges.

    Parameters and buffers have torchvision's names, so the weights of its ResNets fit. Its blocks stride in
    the 3 x 3 convolution; He et al. 2016, "Deep Residual Learning", in the first one. The norms are
    ghost batch norms, or frozen without a `norm_group`. With `dilated`, the last stage keeps its edges, and
    its 3 x 3 convolutions after the first block's read every other pixel (DC5).

    Shapes:
        pixel_values  [b 3 H W]  uint8 in [0, 255], or floats that are already normalised
        returns       [b c H/s W/s]  with c = 2^(stages + 1) * width and stride s = 2^(stages + 1), or half
                                     of it if dilated
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, shape: StagesShape):
        # here because it loads Triton, which importing a module of this package must not
        from torchvision.models.resnet import Bottleneck

        super().__init__()
        width, blocks, dilated = shape.width, shape.blocks, shape.dilated
        norm: Callable[[int], nn.Module] = FrozenBatchNorm
        if shape.norm_group is not None:
            norm = functools.partial(GhostBatchNorm, group=shape.norm_group)
        self.register_buffer("image_mean", torch.tensor(shape.image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(shape.image_std), persistent=False)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        channels, self.stages = width, len(blocks)
        for number, count in enumerate(blocks):
            holds = dilated and number == len(blocks) - 1
            planes, stride = width * 2**number, 1 if number == 0 or holds else 2
            wide = planes * Bottleneck.expansion
            shortcut = nn.Sequential(nn.Conv2d(channels, wide, 1, stride=stride, bias=False), norm(wide))
            first = Bottleneck(channels, planes, stride, shortcut, norm_layer=norm)
            gap = 2 if holds else 1
            others = (Bottleneck(wide, planes, dilation=gap, norm_layer=norm) for _ in range(count - 1))
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *others))
            channels = wide
        self.channels = channels
        self.frozen: tuple[str, ...] = ()
        """Names of the parts that stay as they are."""
        if shape.frozen_stages is not None:
            self.frozen = ("conv1", "bn1", *(f"layer{number + 1}" for number in range(shape.frozen_stages)))
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = normalized(pixel_values, self.image_mean, self.image_std).to(self.conv1.weight.dtype)
        hidden = F.max_pool2d(self.bn1(self.conv1(pixels)).relu(), 3, stride=2, padding=1)
        for number in range(self.stages):
            hidden = self.get_submodule(f"layer{number + 1}")(hidden)
        return hidden

    def flops(self, size: int) -> float:
        """Returns the FLOPs of the convolutions for one image with an edge of `size` pixels."""
        total = 2.0 * self.conv1.weight.numel() * (size // 2) ** 2
        edge = size // STEM_STRIDE
        for number in range(self.stages):
            for block in self.get_submodule(f"layer{number + 1}").children():
                layers = {name: own for name, own in block.named_modules() if isinstance(own, nn.Conv2d)}
                before, edge = edge, edge // max(own.stride[0] for own in layers.values())
                for name, own in layers.items():
                    seen = before if name == "conv1" else edge
                    total += 2.0 * own.weight.numel() * seen**2
        return total


@torch.no_grad()
def initialize_as_resnet(module: nn.Module) -> None:
    """Draws convolutions from a normal distribution of variance 2 / (outputs * k^2), as torchvision does.

    Source: He et al. 2015, "Delving Deep into Rectifiers".
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
