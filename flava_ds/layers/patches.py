"""Images to rows: pixels are normalised, cut into patches and projected."""

from __future__ import annotations

from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn


class PictureShape(Protocol):
    """What a patch embedding needs of an encoder's configuration."""

    @property
    def image_size(self) -> int: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def num_channels(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def image_mean(self) -> tuple[float, float, float]: ...

    @property
    def image_std(self) -> tuple[float, float, float]: ...


class PatchEmbedding(nn.Linear):
    """Projects each patch; normalises uint8 pixels on the device first.

    Shapes:
        pixel_values  [b c H W]  uint8 in [0, 255], or floats that are already normalised
        returns       [b n d]
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, shape: PictureShape, *, bias: bool = True):
        super().__init__(shape.num_channels * shape.patch_size**2, shape.hidden_size, bias=bias)
        self.image_size, self.patch_size = shape.image_size, shape.patch_size
        self.register_buffer("image_mean", torch.tensor(shape.image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(shape.image_std), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        size = self.patch_size
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[-2:])}; the image encoder expects "
                f"{self.image_size} x {self.image_size}"
            )
        if pixel_values.dtype == torch.uint8:
            mean, std = self.image_mean.float(), self.image_std.float()
            shift, scale = -(mean / std)[:, None, None], (1 / (255 * std))[:, None, None]
            pixel_values = torch.addcmul(shift, pixel_values.float(), scale)
        pixel_values = pixel_values.to(self.weight.dtype)
        return super().forward(
            rearrange(pixel_values, "b c (gh p) (gw q) -> b (gh gw) (c p q)", p=size, q=size)
        )
