"""Blur and solarisation of whole batches, drawn for each image from its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from flava_ds.config import ImageTransformConfig
from flava_ds.data.order import uniforms

_STREAM = 7
_THRESHOLD = 128
"""Grey levels from here on are inverted by solarisation."""


@dataclass(frozen=True)
class FilterDraw:
    """What was drawn for each image.

    Shapes:
        weights    [b r+1]  float32, of the pixel itself and of those at each distance; 1 0 ... without blur
        solarized  [b]      bool
    """

    weights: Tensor
    solarized: Tensor

    def at(self, rows: np.ndarray) -> FilterDraw:
        """Returns the draws of some images."""
        index = torch.from_numpy(rows)
        return FilterDraw(self.weights[index], self.solarized[index])


def draw_filters(seeds: np.ndarray, config: ImageTransformConfig) -> FilterDraw | None:
    """Draws each image's filters from its seed; None when the configuration has none.

    The blur is Gaussian, with a standard deviation uniform in blur_sigma, cut off at three of the largest.
    """
    if not (config.blur or config.solarize):
        return None
    draws = uniforms(seeds, 3, stream=_STREAM)
    low, high = config.blur_sigma
    sigma = low + draws[:, 1] * (high - low)
    distance = np.arange(math.ceil(3 * high) + 1 if config.blur else 1)
    weights = np.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    weights[draws[:, 0] >= config.blur] = distance == 0
    return FilterDraw(
        torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(draws[:, 2] < config.solarize)
    )


def apply_filters(images: Tensor, draw: FilterDraw) -> Tensor:
    """Blurs, then inverts the bright half of the grey levels: [b 3 H W] float32 -> the same, in [0, 255].

    Elementwise, so that a image's result does not depend on the batch around it.
    """
    images = images.clamp(0, 255)
    blurred = (draw.weights[:, 1:] > 0).any(1).nonzero().flatten()
    if blurred.numel():
        images = images.index_copy(0, blurred, _blur(images[blurred], draw.weights[blurred]))
    inverted = draw.solarized[:, None, None, None] & (images >= _THRESHOLD)
    return torch.where(inverted, 255 - images, images)


def _blur(images: Tensor, weights: Tensor) -> Tensor:
    """Convolves the rows, then the columns, with the border's pixels repeated: [b 3 H W], [b r+1]."""
    radius = weights.shape[1] - 1
    for axis in (3, 2):
        length = images.shape[axis]
        padded = pad(images, (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius), "replicate")
        images = images * weights[:, 0, None, None, None]
        for distance in range(1, radius + 1):
            both = padded.narrow(axis, radius - distance, length) + padded.narrow(
                axis, radius + distance, length
            )
            images.addcmul_(both, weights[:, distance, None, None, None])
    return images
