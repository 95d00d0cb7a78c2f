"""From decoded image to model input, following the published protocols; defined only here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

LONGEST = 16
"""Of a picture's sides: the longer one over the shorter, beyond which its ends are cut off first."""


@dataclass(frozen=True)
class Transform:
    """Resizes the shorter side with an antialiased bicubic filter, then crops the centre. With `whole`,
    it resizes both sides instead and crops nothing.

    `resize` is the shorter side before the crop, as a multiple of the model's size. The filter is Pillow's
    bicubic.
    """

    resize: float = 1.0
    whole: bool = False

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """Preprocesses an image: [3 H W] uint8 -> [3 size size] uint8."""
        height, width = image.shape[1:]
        short = round(self.resize * size)
        target = (
            [short, int(short * width / height)] if height <= width else [int(short * height / width), short]
        )
        if self.whole:
            target = [size, size]
        elif max(height, width) > LONGEST * min(height, width):
            return self(self._middle(image), size)
        if [height, width] != target:
            image = interpolate(image[None], size=target, mode="bicubic", antialias=True)[0]
        top, left = (round((edge - size) / 2) for edge in image.shape[1:])
        return image[:, top : top + size, left : left + size].to(torch.uint8)

    @staticmethod
    def _middle(image: Tensor) -> Tensor:
        """Cuts the ends off a strip, of which the crop shows nothing, before it is enlarged."""
        edges = [min(edge, LONGEST * min(image.shape[1:])) for edge in image.shape[1:]]
        top, left = ((whole - edge) // 2 for whole, edge in zip(image.shape[1:], edges, strict=True))
        return image[:, top : top + edges[0], left : left + edges[1]]


CLIP_TRANSFORM = Transform()
"""Shorter side to the model's size. Source: CLIP, whose probes FLAVA follows (paper, section 4)."""
DINO_TRANSFORM = Transform(resize=256 / 224)
"""Shorter side to 8/7 of the model's size, 256 for 224. Source: DINO's nearest neighbours."""
WHOLE_TRANSFORM = Transform(whole=True)
"""The whole picture, squeezed: a question may be about its edge, where memes have their text. The paper does
not say how its multimodal tasks resize."""
