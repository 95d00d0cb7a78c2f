"""Scenes: several of the demo's drawings on one canvas, with all that is known of them.

A scene is a pure function of the drawings, a seed and an index. `scene_texts.py` speaks about scenes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from flava_ds.data.decode import decode_image
from flava_ds.demo.captions import seeded
from flava_ds.errors import DataError
from flava_ds.evaluation.samples import read_samples

CANVAS = 96
"""Edge of a scene in pixels."""
SMALLEST, LARGEST = 24, 48
"""Longer edge of a drawing in a scene, in pixels."""
FEWEST, MOST = 2, 4
"""Drawings in a scene."""
MOST_IOU = 0.2
"""Intersection over union that two drawings of a scene may have."""
LEAST_APART = 12
"""Pixels between the centres of two drawings of a scene, along an axis."""
SPLITS = {
    "train": "pairs-train",
    "unseen_style": "pairs-unseen-style",
    "unseen_concepts": "pairs-unseen-concepts",
}
"""Split of scenes -> folder of the demo's data set that its drawings come from."""
COLOURS = ("black", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
_INK = 240
"""A pixel is ink if a channel is below this; scenes are on white."""
_SHARE_OF_COLOUR = 0.55
"""Share of a drawing's ink that has a colour for the drawing to be called by it."""


@dataclass(frozen=True, eq=False)
class Drawings:
    """Drawings without their white margins: each [3 h w] uint8, its longer edge 64 px or less, and what it
    shows. `colours` has None where no colour prevails.
    """

    name: str
    pictures: tuple[Tensor, ...]
    concepts: tuple[str, ...]
    labels: tuple[str, ...]
    subgroups: tuple[str, ...]
    colours: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Scene:
    """Drawings of different concepts, as rows of a Drawings, and their boxes in pixels.

    Shapes:
        boxes  one (x1, y1, x2, y2) per drawing
    """

    rows: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]

    def __len__(self) -> int:
        return len(self.rows)


@functools.lru_cache(maxsize=len(SPLITS))
def read_drawings(root: Path, split: str) -> Drawings:
    """Reads the drawings of a split from the demo's data set in `root`. Those that white paper hides are left
    out.

    Raises: DataError if there is no such split, or the data set is incomplete.
    """
    samples = read_samples(folder_of(root, split))
    columns = [samples.column(name) for name in ("concept", "label", "subgroup")]
    found = []
    for row, data in enumerate(samples.encoded_images):
        picture = without_margins(decode_image(data))
        if picture is not None:
            found.append((picture, *(str(column[row]) for column in columns), colour_of(picture)))
    pictures, concepts, labels, subgroups, colours = zip(*found, strict=True)
    return Drawings(split, pictures, concepts, labels, subgroups, colours)


def folder_of(root: Path, split: str) -> Path:
    """Returns the folder of a split's drawings. Raises: DataError if there is no such split."""
    if split not in SPLITS:
        raise DataError(f"scenes have no split '{split}'; choose of {', '.join(SPLITS)}")
    return Path(root) / SPLITS[split]


def without_margins(picture: Tensor) -> Tensor | None:
    """Crops a picture to its ink: [3 H W] uint8 -> [3 h w]; None if a side of it would be under 8 px."""
    ink = (picture < _INK).any(0)
    down, across = (ink.any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(down) or min(down[-1] - down[0], across[-1] - across[0]) < 7:
        return None
    return picture[:, down[0] : down[-1] + 1, across[0] : across[-1] + 1].contiguous()


def colour_of(picture: Tensor) -> str | None:
    """Names the colour of most of a drawing's ink, [3 h w] uint8, or None if there is no such colour."""
    pixels = rearrange(picture, "c h w -> (h w) c").numpy()
    cells = pixels[(pixels < _INK).any(1)].astype(np.int64) // 8 @ (32 * 32, 32, 1)
    if not len(cells):
        return None
    named = _table()[cells]
    counts = np.bincount(named, minlength=len(COLOURS))
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= _SHARE_OF_COLOUR * len(named) else None


@functools.cache
def _table() -> np.ndarray:
    """Returns the names of colours in steps of 8 grey levels: [32 * 32 * 32] int64."""
    levels = np.arange(4, 256, 8)
    grid = np.meshgrid(levels, levels, levels, indexing="ij")
    return colour_names(rearrange(np.stack(grid), "c r g b -> (r g b) c"))


def colour_names(pixels: np.ndarray) -> np.ndarray:
    """Names pixels by lightness, saturation and hue: [N 3] uint8 -> [N] int64, into COLOURS."""
    rgb = pixels.astype(np.float64) / 255
    value, spread = rgb.max(1), np.ptp(rgb, axis=1)
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    red, green, blue = rgb.T
    with np.errstate(divide="ignore", invalid="ignore"):
        sector = np.select(
            [value == red, value == green],
            [(green - blue) / spread % 6, 2 + (blue - red) / spread],
            4 + (red - green) / spread,
        )
    hue = 60 * np.nan_to_num(sector)
    warm = (hue < 45) | (hue >= 345)
    rules = (
        ("black", value < 0.28),
        ("grey", saturation < 0.15),
        ("black", (value < 0.4) & (saturation < 0.35)),
        ("grey", saturation < 0.22),
        ("pink", warm & ((hue < 12) | (hue >= 345)) & (saturation < 0.55) & (value > 0.75)),
        ("brown", warm & (hue >= 8) & (hue < 45) & (value < 0.72)),
        ("red", (hue < 15) | (hue >= 345)),
        ("orange", hue < 36),
        ("yellow", hue < 68),
        ("green", hue < 165),
        ("blue", hue < 255),
        ("purple", (hue < 295) | (value < 0.6)),
    )
    places = [np.full(len(rgb), COLOURS.index(name)) for name, _ in rules]
    return np.select([rule for _, rule in rules], places, COLOURS.index("pink"))


def draw_scene(
    drawings: Drawings,
    seed: int,
    index: int,
    *,
    counts: tuple[int, int] = (FEWEST, MOST),
    edges: tuple[int, int] = (SMALLEST, LARGEST),
) -> Scene:
    """Draws a scene: drawings of different concepts, their sizes and places.

    `counts` are the fewest and the most drawings, `edges` the shortest and the longest longer edge.
    """
    draw = seeded(f"scene {drawings.name} {seed} {index}")
    count = draw.randint(*counts)
    rows: list[int] = []
    while len(rows) < count:
        row = draw.randrange(len(drawings))
        if all(drawings.labels[row] != drawings.labels[other] for other in rows):
            rows.append(row)
    while True:  # a crowded canvas is begun again
        boxes: list[tuple[int, int, int, int]] = []
        for row in rows:
            width, height = fitted(drawings.pictures[row], draw.randint(*edges))
            for _ in range(20):
                x, y = draw.randint(0, CANVAS - width), draw.randint(0, CANVAS - height)
                box = (x, y, x + width, y + height)
                if all(_is_clear(box, other) for other in boxes):
                    boxes.append(box)
                    break
        if len(boxes) == count:
            return Scene(tuple(rows), tuple(boxes))


def _is_clear(box: Sequence[int], other: Sequence[int]) -> bool:
    """Says whether two boxes overlap little, and have centres that are apart."""
    return iou(box, other) <= MOST_IOU and max(map(abs, offset(box, other))) >= LEAST_APART


def offset(box: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Returns how far a box's centre is to the right of another's, and how far below it."""
    return (box[0] + box[2] - other[0] - other[2]) / 2, (box[1] + box[3] - other[1] - other[3]) / 2


def fitted(picture: Tensor, longer: int) -> tuple[int, int]:
    """Returns width and height of a picture whose longer edge has so many pixels."""
    height, width = picture.shape[1:]
    scale = longer / max(height, width)
    return max(1, round(scale * width)), max(1, round(scale * height))


def iou(box: Sequence[float], other: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(own[2] - own[0]) * (own[3] - own[1]) for own in (box, other)]
    return both / (sum(areas) - both)


def paint(drawings: Drawings, scene: Scene) -> Tensor:
    """Paints a scene on white: [3 CANVAS CANVAS] uint8. Where drawings overlap, the darker channel shows."""
    canvas = torch.full((3, CANVAS, CANVAS), 255, dtype=torch.uint8)
    for row, (x1, y1, x2, y2) in zip(scene.rows, scene.boxes, strict=True):
        picture, size = drawings.pictures[row], (y2 - y1, x2 - x1)
        if picture.shape[1:] != size:
            picture = interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]
        part = canvas[:, y1:y2, x1:x2]
        torch.minimum(part, picture, out=part)
    return canvas
