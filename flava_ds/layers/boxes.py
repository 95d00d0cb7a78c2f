"""Boxes: their two notations, and by how much they overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Turns centre x, centre y, width, height into x1 y1 x2 y2: [... 4] -> [... 4]."""
    centres, edges = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centres - edges / 2, centres + edges / 2], dim=-1)


def to_centres(boxes: Tensor) -> Tensor:
    """Turns x1 y1 x2 y2 into centre x, centre y, width, height: [... 4] -> [... 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the generalised intersection over union of boxes x1 y1 x2 y2, in [-1, 1]: [... 4], [... 4] ->
    [...], broadcast.

    It is the IoU, less the share of the smallest enclosing box that neither covers. Boxes without an area
    give finite values and gradients.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union".
    """
    areas = [(own[..., 2:] - own[..., :2]).prod(-1) for own in (boxes, others)]
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    around = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    least = torch.finfo(boxes.dtype).tiny
    union, whole = areas[0] + areas[1] - both, around.prod(-1)
    return both / union.clamp(min=least) - (whole - union) / whole.clamp(min=least)
