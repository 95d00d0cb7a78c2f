"""The stem and the first stages of a ResNet with ghost batch norms, from torchvision's blocks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.layers.ghost_norm import GhostBatchNorm
from flava_ds.layers.patches import normalized

STEM_STRIDE = 4


class ResNetStages(nn.Module):
    """Pixels to a grid of features; each stage after the first halves its edges.

    Parameters and buffers have torchvision's names, so the weights of its ResNets fit. Its blocks stride in
    the 3 x 3 convolution; He et al. 2016, "Deep Residual Learning", in the first one.

    Shapes:
        pixel_values  [b 3 H W]  uint8 in [0, 255], or floats that are already normalised
        returns       [b c H/s W/s]  with c = 2^(stages + 1) * width and stride s = 2^(stages + 1)
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, width: int, blocks: Sequence[int], mean: Sequence[float], std: Sequence[float], norm_group: int
    ):
        # here because it loads Triton, which importing a module of this package must not
        from torchvision.models.resnet import Bottleneck

        super().__init__()
        norm = functools.partial(GhostBatchNorm, group=norm_group)
        self.register_buffer("image_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(std), persistent=False)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        channels, self.stages = width, len(blocks)
        for number, count in enumerate(blocks):
            planes, stride = width * 2**number, 1 if number == 0 else 2
            wide = planes * Bottleneck.expansion
            shortcut = nn.Sequential(nn.Conv2d(channels, wide, 1, stride=stride, bias=False), norm(wide))
            first = Bottleneck(channels, planes, stride, shortcut, norm_layer=norm)
            others = (Bottleneck(wide, planes, norm_layer=norm) for _ in range(count - 1))
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *others))
            channels = wide
        self.channels = channels

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
            for place, block in enumerate(self.get_submodule(f"layer{number + 1}").children()):
                before, edge = edge, edge // 2 if number and not place else edge
                for name, own in block.named_modules():
                    if isinstance(own, nn.Conv2d):
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
