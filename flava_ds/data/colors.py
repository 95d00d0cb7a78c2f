"""Colour augmentation of whole batches: one affine colour map per image, and edge outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flava_ds.config import ImageTransformConfig
from flava_ds.data.order import uniforms

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in luminance. Source: ITU-R BT.601."""
_YIQ = np.array([LUMINANCE, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
"""Luminance, and two axes of colour without it."""
_STREAM, _FACTORS_STREAM = 3, 8
_MIXING, _SHIFT = 0.5, 96.0
_EDGE_GAIN = 4.0


@dataclass(frozen=True)
class ColorDraw:
    """The random draws of each image: out = scale @ (colour - mean) + keep @ mean + shift, per pixel.

    Shapes:
        scale  [b 3 3]  float32, acts on the difference from the image's mean colour
        keep   [b 3 3]  float32, acts on the mean colour
        shift  [b 3]    float32, grey levels
        edges  [b]      bool, whether to draw outlines first
    """

    scale: Tensor
    keep: Tensor
    shift: Tensor
    edges: Tensor

    def at(self, rows: np.ndarray) -> ColorDraw:
        """Returns the draws of some rows."""
        index = torch.from_numpy(rows)
        return ColorDraw(self.scale[index], self.keep[index], self.shift[index], self.edges[index])


def draw_colors(seeds: np.ndarray, config: ImageTransformConfig) -> ColorDraw | None:
    """Draws each image's colour map from its seed; None when the configuration changes no colours.

    Jitter of strength s multiplies contrast by 1 + s*u, mixes channels by s/2*u each and shifts brightness by
    up to 96*s grey levels, u uniform in [-1, 1]. Brightness, contrast, saturation and hue follow in this
    order, before the greys; values are clamped once, at the end.
    """
    factors = (config.brightness, config.contrast, config.saturation, config.hue)
    if not (config.color_jitter or config.grayscale or config.invert or config.edges or any(factors)):
        return None
    draws = uniforms(seeds, 16, stream=_STREAM)
    signed = 2 * draws[:, :13] - 1
    strength = config.color_jitter
    eye, grey = np.eye(3), np.tile(np.array(LUMINANCE), (3, 1))
    mixing = signed[:, 1:10].reshape(-1, 3, 3)
    scale = eye * (1 + strength * signed[:, :1, None]) + strength * _MIXING * mixing
    shift = strength * _SHIFT * signed[:, 10:13]
    about_mean = np.broadcast_to(eye, scale.shape)
    if any(factors) or config.jitter_probability < 1:
        more = uniforms(seeds, 5, stream=_FACTORS_STREAM)
        still = more[:, 4] >= config.jitter_probability
        scale[still], shift[still], more[still, :4] = eye, 0.0, 0.5
        linear, about_mean = _factors(2 * more[:, :4] - 1, factors)
        scale, shift = linear @ scale, (linear @ shift[:, :, None])[:, :, 0]
    project = np.where((draws[:, 13] < config.grayscale)[:, None, None], grey, eye)
    negative = draws[:, 14] < config.invert
    sign = np.where(negative, -1.0, 1.0)
    scale = sign[:, None, None] * (project @ scale)
    shift = sign[:, None] * (project @ shift[:, :, None])[:, :, 0] + np.where(negative, 255.0, 0.0)[:, None]
    keep = sign[:, None, None] * (project @ about_mean)
    values = (scale.astype(np.float32), keep.astype(np.float32), shift.astype(np.float32))
    return ColorDraw(*map(torch.from_numpy, (*values, draws[:, 15] < config.edges)))


def _factors(signed: np.ndarray, sizes: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Composes brightness, contrast, saturation and hue to what acts on a colour's distance from the
    image's mean, and to what acts on that mean: [b 4] in [-1, 1] -> [b 3 3], [b 3 3].

    Hue is a rotation about the grey axis, in the plane of equal luminance (YIQ), as an affine map needs it.
    """
    eye, grey = np.eye(3), np.tile(np.array(LUMINANCE), (3, 1))
    brightness, contrast, saturation = (1 + sizes[i] * signed[:, i, None, None] for i in range(3))
    turn = 2 * np.pi * sizes[3] * signed[:, 3]
    cosine, sine, zero = np.cos(turn), np.sin(turn), np.zeros_like(turn)
    plane = np.stack([zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).reshape(-1, 3, 3)
    after = (np.linalg.inv(_YIQ) @ plane @ _YIQ) @ (saturation * eye + (1 - saturation) * grey)
    return after * contrast * brightness, after @ (contrast * eye + (1 - contrast) * grey) * brightness


def apply_colors(images: Tensor, draw: ColorDraw) -> Tensor:
    """Applies outlines, then the colour maps: [b 3 H W] float32 in [0, 255] -> the same, not clamped.

    All operations are elementwise, so an image's result does not depend on the rest of the batch.
    """
    rows = draw.edges.nonzero().flatten()
    if rows.numel():
        images = images.index_copy(0, rows, outline(images[rows]))
    mean = images.mean((2, 3))
    offset = draw.shift.clone()
    for channel in range(3):
        offset += (draw.keep - draw.scale)[:, :, channel] * mean[:, channel, None]
    out = torch.empty_like(images)
    for channel in range(3):
        weights = draw.scale[:, channel, :, None, None]
        torch.mul(images[:, 0], weights[:, 0], out=out[:, channel])
        for other in (1, 2):
            out[:, channel].addcmul_(images[:, other], weights[:, other])
        out[:, channel] += offset[:, channel, None, None]
    return out


def outline(images: Tensor) -> Tensor:
    """Draws edges of the luminance, dark on white: [b 3 H W] float32 -> the same shape.

    A step of half the grey scale is fully dark. Source: the operator of Sobel and Feldman (1968).
    """
    red, green, blue = images.unbind(1)
    luminance = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    padded = torch.nn.functional.pad(luminance[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    horizontal, vertical = down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]
    slope = torch.sqrt(horizontal.square() + vertical.square()) / 8
    return (255 - _EDGE_GAIN * slope).clamp_(0, 255)[:, None].expand(-1, 3, -1, -1)
