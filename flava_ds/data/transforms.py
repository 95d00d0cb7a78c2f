"""Augments decoded images and resizes them to the model's input, seeded per sample, many images at a time.

Small images of equal size go through one affine resampling per batch. Large ones are cropped and resized one
by one with an antialiased bicubic filter; a view at a fraction of the first view's size is reduced from that.
The path of an image depends only on its own size, so a sample's pixels never depend on its neighbours in the
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from flava_ds.config import ImageTransformConfig
from flava_ds.data.colors import ColorDraw, apply_colors, draw_colors
from flava_ds.data.filters import FilterDraw, apply_filters, draw_filters
from flava_ds.data.order import uniforms

SMALL_SIDE = 160
"""Images up to this edge are resampled as a batch."""
_OVERSAMPLING = 1.5
"""Small images are first reduced to this multiple of the output size, as bilinear sampling would alias."""
CHUNK, CHUNK_BYTES = 32, 2**28
"""Maximum images rendered together, and held decoded at a time; beyond these bytes none is added."""
Empty = Callable[..., Tensor]
"""Allocates a tensor like torch.empty."""
_CROP_STREAM, _GEOMETRY_STREAM = 1, 2
_CROP_ATTEMPTS = 10


class ImageTransform:
    """Augments a list of decoded images and renders them at one or several sizes from the same crop."""

    def __init__(self, config: ImageTransformConfig, sizes: Sequence[int]) -> None:
        """`sizes` are edges in pixels, the model's input first."""
        self.config, self.sizes = config, tuple(sizes)
        self._turns = config.rotation_degrees > 0
        self._same_boxes = config.crop_scale[0] >= 1 and not self._turns

    def __call__(
        self, images: Sequence[Tensor], seeds: np.ndarray, out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Returns one batch per size, or fills `out`; all with the same crop, rotation and colours.

        Shapes:
            images  b times [3 H W]  uint8
            seeds   [b]              uint64
            out     [b 3 S S]        uint8, for each size S
        """
        shapes = np.array([image.shape[1:] for image in images], dtype=np.int64)
        draws = _Draws(
            draw_boxes(shapes, seeds, self.config),
            *_draw_geometry(seeds, self.config),
            draw_colors(seeds, self.config),
            draw_filters(seeds, self.config),
        )
        views = self.empty(len(images)) if out is None else list(out)
        large = shapes.max(1) > SMALL_SIDE
        for view in views:
            if view is not views[0] and views[0].shape[-1] % view.shape[-1] == 0:
                _reduce(views[0], np.flatnonzero(large), view)
                self._render(images, shapes, draws, np.flatnonzero(~large), view)
            else:
                self._render(images, shapes, draws, np.arange(len(images)), view)
        return views

    def empty(self, count: int, empty: Empty = torch.empty) -> list[Tensor]:
        """Allocates the output of a call on `count` images."""
        return [empty(count, 3, size, size, dtype=torch.uint8) for size in self.sizes]

    def _render(
        self, images: Sequence[Tensor], shapes: np.ndarray, draws: _Draws, rows: np.ndarray, out: Tensor
    ) -> None:
        """Renders the images `rows` at the size of `out` [b 3 S S].

        Small images of equal size are rendered in chunks that stay in the processor's cache.
        """
        size, small = out.shape[-1], shapes[rows].max(1, initial=0) <= SMALL_SIDE
        for row in rows[~small].tolist():
            view = self._view(images[row][None], draws.at(np.array([row])), size, small=False)
            out[row : row + 1].copy_(view)
        for shape in np.unique(shapes[rows[small]], axis=0):
            group = rows[small & (shapes[rows] == shape).all(1)]
            for chunk in (group[start : start + CHUNK] for start in range(0, len(group), CHUNK)):
                stacked = torch.stack([images[row] for row in chunk])
                view = self._view(stacked, draws.at(chunk), size, small=True)
                out.numpy()[chunk] = view.numpy()

    def _view(self, images: Tensor, draws: _Draws, size: int, *, small: bool) -> Tensor:
        """Crops, rotates, mirrors and colours images of equal size; large ones come one at a time.

        Shapes:
            images  [b 3 H W]        uint8
            out     [b 3 size size]  uint8
        """
        if small and not self._same_boxes:
            view = _resample(images, draws.boxes, draws.angle, draws.flip, size)
        else:
            view = _crop_resize(images, draws.boxes[0], size, draws.flip)
            whole = np.array([[0.0, 0.0, size, size]])
            view = _resample(view, whole, draws.angle, np.zeros(1, dtype=bool), size) if self._turns else view
        view = apply_colors(view.float(), draws.colors) if draws.colors is not None else view
        return _to_uint8(apply_filters(view.float(), draws.filters) if draws.filters is not None else view)


class _Draws(NamedTuple):
    """The random draws of each image: crop, angle in radians, whether to mirror, colours, and filters."""

    boxes: np.ndarray
    angle: np.ndarray
    flip: np.ndarray
    colors: ColorDraw | None
    filters: FilterDraw | None

    def at(self, rows: np.ndarray) -> _Draws:
        """Returns the draws of some rows."""
        return _Draws(
            self.boxes[rows],
            self.angle[rows],
            self.flip[rows],
            self.colors.at(rows) if self.colors is not None else None,
            self.filters.at(rows) if self.filters is not None else None,
        )


def _reduce(views: Tensor, rows: np.ndarray, out: Tensor) -> None:
    """Makes a smaller view from a larger one, which already has the crop and colours.

    That is a third of the work of rendering the images again.
    """
    size = tuple(out.shape[2:])
    if len(rows) == len(views):
        out.copy_(interpolate(views, size=size, mode="bicubic", antialias=True))
    elif len(rows):
        chosen = views[torch.from_numpy(rows)]
        out.numpy()[rows] = interpolate(chosen, size=size, mode="bicubic", antialias=True).numpy()


def center_pixels(images: Sequence[Tensor], size: int) -> Tensor:
    """Resizes the shorter side to `size` and crops the centre, without randomness, as for evaluation.

    Shapes:
        images  b times [3 H W]  uint8
        out     [b 3 size size]  uint8
    """
    config = ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    return ImageTransform(config, (size,))(images, np.zeros(len(images), dtype=np.uint64))[0]


def draw_boxes(shapes: np.ndarray, seeds: np.ndarray, config: ImageTransformConfig) -> np.ndarray:
    """Draws each image's crop: area share and log aspect ratio are uniform.

    If ten draws do not fit, takes the largest centred crop within the ratios.

    Shapes:
        shapes  [b 2]  int64, heights and widths in pixels
        out     [b 4]  float64, top, left, height, width in pixels
    """
    heights, widths = shapes[:, 0].astype(np.float64), shapes[:, 1].astype(np.float64)
    low, high = config.crop_ratio
    ratio = np.clip(widths / heights, low, high)
    crop_width, crop_height = np.minimum(widths, heights * ratio), np.minimum(heights, widths / ratio)
    boxes = np.stack([(heights - crop_height) / 2, (widths - crop_width) / 2, crop_height, crop_width], 1)
    pending = np.arange(len(shapes))
    for attempt in range(_CROP_ATTEMPTS if config.crop_scale[0] < 1 else 0):
        share, aspect, top, left = uniforms(seeds[pending], 4, stream=_CROP_STREAM, start=4 * attempt).T
        scale = config.crop_scale[0] + share * (config.crop_scale[1] - config.crop_scale[0])
        area = heights[pending] * widths[pending] * scale
        aspect = np.exp(math.log(low) + aspect * math.log(high / low))
        width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
        fits = (width <= widths[pending]) & (height <= heights[pending])
        tops, lefts = top * (heights[pending] - height), left * (widths[pending] - width)
        found = np.stack([tops, lefts, height, width], 1)
        boxes[pending[fits]] = found[fits]
        pending = pending[~fits]
    return boxes


def _draw_geometry(seeds: np.ndarray, config: ImageTransformConfig) -> tuple[np.ndarray, np.ndarray]:
    """Draws rotation in radians and whether to mirror: [b] float64, [b] bool."""
    draws = uniforms(seeds, 2, stream=_GEOMETRY_STREAM)
    return np.radians(config.rotation_degrees) * (2 * draws[:, 0] - 1), draws[:, 1] < config.horizontal_flip


def _resample(images: Tensor, boxes: np.ndarray, angle: np.ndarray, flip: np.ndarray, size: int) -> Tensor:
    """Samples the crops of equally large images in one go: [b 3 H W] uint8 -> [b 3 size size] float32.

    Uses elementwise operations only: a batched matrix product may round differently for other batch sizes.
    """
    height, width = images.shape[2:]
    limit = _OVERSAMPLING * size / min(height, width)
    if limit < 1:
        reduced = (max(1, round(height * limit)), max(1, round(width * limit)))
        images = interpolate(images, size=reduced, mode="bilinear", antialias=True)
    top, left, box_height, box_width = (torch.from_numpy(boxes[:, i].astype(np.float32)) for i in range(4))
    cosine, sine = (torch.from_numpy(f(angle).astype(np.float32)) for f in (np.cos, np.sin))
    mirror = torch.from_numpy(np.where(flip, -1.0, 1.0).astype(np.float32))
    line = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1
    across, down = line[None, None, :], line[None, :, None]
    half_width, half_height = (box_width / 2)[:, None, None], (box_height / 2)[:, None, None]
    cosine, sine, mirror = cosine[:, None, None], sine[:, None, None], mirror[:, None, None]
    grid = torch.empty(len(images), size, size, 2)
    x = (cosine * half_width * mirror) * across + (left[:, None, None] + half_width)
    torch.sub(x * (2 / width) - 1, (sine * half_height) * (2 / width) * down, out=grid[..., 0])
    y = (cosine * half_height) * down + (top[:, None, None] + half_height)
    torch.add(y * (2 / height) - 1, (sine * half_width * mirror) * (2 / height) * across, out=grid[..., 1])
    return grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _crop_resize(images: Tensor, box: np.ndarray, size: int, flip: np.ndarray) -> Tensor:
    """Crops one box of whole pixels, resizes it with an antialiased bicubic filter, and mirrors: uint8."""
    top, left = int(round(box[0])), int(round(box[1]))
    height, width = max(1, int(round(box[2]))), max(1, int(round(box[3])))
    top, left = min(top, images.shape[2] - height), min(left, images.shape[3] - width)
    crops = images[:, :, top : top + height, left : left + width]
    out = crops.contiguous(memory_format=torch.channels_last)
    if not height == width == size:
        out = interpolate(out, size=(size, size), mode="bicubic", antialias=True)
    return torch.where(torch.from_numpy(flip)[:, None, None, None], out.flip(-1), out) if flip.any() else out


def _to_uint8(images: Tensor) -> Tensor:
    """Rounds grey levels to nearest and clamps them to [0, 255]."""
    return images if images.dtype == torch.uint8 else images.clamp_(0, 255).add_(0.5).to(torch.uint8)
