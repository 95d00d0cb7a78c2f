"""Images to rows: pixels are normalised, cut into patches and projected."""

from __future__ import annotations

import functools
import math
from typing import Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flava_ds.layers.ghost_norm import FixedPrecision


class Tiled(Protocol):
    """An image's size and that of its patches."""

    @property
    def image_size(self) -> int: ...

    @property
    def patch_size(self) -> int: ...


class PictureShape(Tiled, Protocol):
    """What a patch embedding needs of an encoder's configuration."""

    @property
    def num_channels(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def image_mean(self) -> tuple[float, float, float]: ...

    @property
    def image_std(self) -> tuple[float, float, float]: ...


class PatchEmbedding(FixedPrecision, nn.Linear):
    """Projects each patch; normalises uint8 pixels on the device first.

    Shapes:
        pixel_values  [b c H W]  uint8 in [0, 255], or floats that are already normalised
        returns       [b n d]
    Raises: ValueError for images of another size than the configuration's; with `any_size`, for those that
        are not whole patches.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, shape: PictureShape, *, bias: bool = True):
        super().__init__(shape.num_channels * shape.patch_size**2, shape.hidden_size, bias=bias)
        self.image_size, self.patch_size = shape.image_size, shape.patch_size
        self.register_buffer("image_mean", torch.tensor(shape.image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(shape.image_std), persistent=False)

    def forward(self, pixel_values: Tensor, *, any_size: bool = False) -> Tensor:
        size = self.patch_size
        if any_size and any(edge % size for edge in pixel_values.shape[-2:]):
            raise ValueError(f"pixel_values are {tuple(pixel_values.shape[-2:])}, no multiples of {size}")
        if not any_size and pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[-2:])}; the image encoder expects "
                f"{self.image_size} x {self.image_size}"
            )
        pixel_values = normalized(pixel_values, self.image_mean, self.image_std)
        pixel_values = pixel_values.to(self.weight.dtype)
        return super().forward(
            rearrange(pixel_values, "b c (gh p) (gw q) -> b (gh gw) (c p q)", p=size, q=size)
        )


def normalized(pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalises uint8 pixels on their device, in fp32; floats are normalised already: [b c H W]."""
    if pixel_values.dtype != torch.uint8:
        return pixel_values
    mean, std = mean.float(), std.float()
    shift, scale = -(mean / std)[:, None, None], (1 / (255 * std))[:, None, None]
    return torch.addcmul(shift, pixel_values.float(), scale)


def enlarged_edge(shape: Tiled, scale: float) -> int:
    """Returns the edge of pictures `scale` times as large, rounded to whole patches: 480 for 224 and
    480/224."""
    return max(1, round(shape.image_size * scale / shape.patch_size)) * shape.patch_size


def resized_positions(
    positions: Tensor,
    grid: tuple[int, int],
    *,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
    align_corners: bool = False,
) -> Tensor:
    """Interpolates a table of positions to another grid of patches, its first row aside.

    With `align_corners`, the corners of both grids are in the same places, as in ViLT.

    Shapes:
        positions  [1+n d], n a square
        returns    [1+gh*gw d]
    """
    rest = resized_grid(positions[1:], grid, mode=mode, align_corners=align_corners)
    return torch.cat([positions[:1], rest])


def resized_grid(
    table: Tensor,
    grid: tuple[int, int],
    *,
    mode: Literal["bicubic", "bilinear"],
    align_corners: bool = False,
) -> Tensor:
    """Interpolates a square table to another grid.

    As a product with fixed weights, which is deterministic on every device, in fp32 at least.

    Shapes:
        table    [n d], n a square
        returns  [gh*gw d]
    """
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    weights = _weights(mode, align_corners, math.isqrt(table.shape[0]), grid, wide.dtype, wide.device)
    return (weights @ wide).to(table.dtype)


@functools.lru_cache(maxsize=64)
def _weights(
    mode: str,
    align_corners: bool,
    edge: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Returns what each old cell gives to each new one: [gh*gw edge*edge]."""
    ones = torch.eye(edge * edge, dtype=torch.float64).view(edge * edge, 1, edge, edge)
    resized = interpolate(ones, size=grid, mode=mode, align_corners=align_corners)
    return resized.view(edge * edge, -1).T.contiguous().to(device, dtype)
