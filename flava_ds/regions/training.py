"""Trains a detector: a fixed number of steps on pictures with boxes, the same bits for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.config.bounds import Above, AtLeast
from flava_ds.config.schedules import CosineScheduleConfig
from flava_ds.errors import DataError
from flava_ds.regions.detector import Detector, DetectorConfig

LEAST_SIGMA = 0.4
"""Of the bell around a centre, in cells; a sixth of the box's edge is usual."""
JITTER = 0.1
"""Training moves each edge of a box by at most this share of its width or height before describing it."""


@dataclass(frozen=True, kw_only=True)
class DetectorTrainingConfig:
    """How to train a detector."""

    total_steps: Annotated[int, AtLeast(1)] = 3500
    """Updates. A fixed number: the weights do not depend on how fast the machine is."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Pictures of an update."""
    lr: Annotated[float, Above(0)] = 3e-3
    """Peak of a cosine that ends at 0."""
    warmup_steps: Annotated[int, AtLeast(0)] = 100
    weight_decay: Annotated[float, AtLeast(0)] = 0.02
    size_weight: Annotated[float, AtLeast(0)] = 2.0
    """Of the boxes' loss, relative to the centres' and the classes'."""
    seed: int = 0


@dataclass(frozen=True)
class Truths:
    """Pictures with what is in them.

    Shapes:
        pixels  [b 3 H W]  uint8
        boxes   [k 4]      fp32: x1, y1, x2, y2 as shares of width and height
        labels  [k]        int64, into the detector's class_names
        images  [k]        int64, into b
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    images: Tensor


def train_detector(
    config: DetectorConfig,
    training: DetectorTrainingConfig,
    batch: Callable[[int], Truths],
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> Detector:
    """Trains on `batch(step)` in fp32. `on_step` gets each step's losses. Returns the detector, frozen.

    Raises: DataError when a loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        detector = Detector(config)
    detector.train()
    schedule = CosineScheduleConfig(warmup_steps=training.warmup_steps)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    for step in range(training.total_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step, training.lr, training.total_steps)
        losses = detector_losses(detector, batch(step), training.seed + step)
        total = losses["centers"] + losses["classes"] + training.size_weight * losses["boxes"]
        if not math.isfinite(total.item()):
            raise DataError(
                f"the detector's loss is not finite at step {step}; lower the learning rate {training.lr}"
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        on_step(step, {name: loss.item() for name, loss in losses.items()})
    return detector.requires_grad_(False).eval()


def detector_losses(detector: Detector, truths: Truths, seed: int) -> dict[str, Tensor]:
    """Returns the losses of the centres, the boxes and the classes, each a mean over the truths.

    Centres have CenterNet's penalty-reduced focal loss, with a bell around each centre. Boxes have an L1 loss
    on offset and log size, at centres. Classes have the cross-entropy of boxes whose edges `seed` has moved.
    Source: Objects as Points (Zhou et al. 2019), equations 1 to 3.
    """
    hidden = detector.map(detector.prepare(truths.pixels))
    cells = detector.centers(hidden)
    height, width = cells.shape[2:]
    scale = truths.boxes.new_tensor([width, height])
    middle = scale * (truths.boxes[:, :2] + truths.boxes[:, 2:]) / 2
    size = truths.boxes[:, 2:] - truths.boxes[:, :2]
    cell = torch.minimum(middle.floor(), scale - 1)
    count = max(1, len(truths.labels))
    bells = _bells(cell, scale * size, truths.images, (len(truths.pixels), height, width))
    columns, rows = cell.long().unbind(1)
    own = cells[truths.images, :, rows, columns]
    wanted = torch.cat([middle - cell - 0.5, size.log()], 1)
    moved = truths.boxes + JITTER * size.repeat(1, 2) * _signed(truths.boxes.shape, seed)
    _, logits = detector.describe(hidden, moved.clamp(0, 1), truths.images)
    return {
        "centers": _focal(cells[:, 0], bells) / count,
        "boxes": F.l1_loss(own[:, 1:], wanted, reduction="sum") / count,
        "classes": F.cross_entropy(logits, truths.labels, reduction="sum") / count,
    }


def _bells(cell: Tensor, size: Tensor, images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Draws a bell of height 1 around each centre: [k 2] in cells, [k 2] in cells, [k] -> [b gh gw]."""
    count, height, width = shape
    sigma = (size / 6).clamp(min=LEAST_SIGMA)
    across = torch.arange(width) - cell[:, :1]
    down = torch.arange(height) - cell[:, 1:]
    flat = -(across / sigma[:, :1]).square()[:, None, :] - (down / sigma[:, 1:]).square()[:, :, None]
    drawn = torch.zeros(count, height, width)
    index = images[:, None, None].expand(-1, height, width)
    return drawn.scatter_reduce(0, index, (flat / 2).exp(), "amax")


def _focal(logits: Tensor, bells: Tensor) -> Tensor:
    """Returns the sum of the penalty-reduced focal loss: [b gh gw], [b gh gw] with 1 at centres -> []."""
    probability = logits.sigmoid()
    there = -F.logsigmoid(logits) * (1 - probability).square()
    absent = -F.logsigmoid(-logits) * probability.square() * (1 - bells).pow(4)
    return torch.where(bells == 1, there, absent).sum()


def _signed(shape: torch.Size, seed: int) -> Tensor:
    """Draws numbers between -1 and 1 from a seed."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1
