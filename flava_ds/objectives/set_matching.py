"""The cheapest assignment of an image's objects to a model's predictions, for several layers at once.

Source: Carion et al. 2020, DETR, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flava_ds.errors import ConfigError
from flava_ds.layers.boxes import generalized_iou, to_centres, to_corners

_IMPOSSIBLE = 1e6
"""The cost of a prediction that is no number."""


@dataclass(frozen=True)
class Objects:
    """The objects in the images of a batch.

    Shapes:
        labels      [O]    int64
        boxes       [O 4]  x1 y1 x2 y2 as shares of width and height
        cu_seqlens  [b+1]  int32
    """

    labels: Tensor
    boxes: Tensor
    cu_seqlens: Tensor
    longest: int


@dataclass(frozen=True, kw_only=True)
class MatchCosts:
    """How much each part of a prediction counts in its cost: -p(class), L1 of boxes, -GIoU."""

    probability: float = 1.0
    distance: float
    overlap: float


def match(logits: Tensor, boxes: Tensor, objects: Objects, costs: MatchCosts) -> tuple[Tensor, Tensor]:
    """Assigns every object a prediction of each layer, as many as there are predictions.

    All costs go to the host in one transfer, and the assignments come back in one.

    Shapes:
        logits   [L b Q z+1]  the last class is "none"
        boxes    [L b Q 4]    centre x, centre y, width, height
        returns  [k], [k]     rows of the flat predictions (L b Q), and the object of each
    Raises: ConfigError without scipy.
    """
    layers, size, queries = logits.shape[:3]
    count = objects.labels.shape[0]
    if count == 0 or logits.is_meta:
        rows = torch.zeros(layers * count, dtype=torch.int64, device=logits.device)
        return rows, rows
    starts = objects.cu_seqlens[:-1, None].long()
    place = torch.arange(objects.longest, device=starts.device)
    padded = (starts + place).clamp(max=count - 1)
    real = place < objects.cu_seqlens.diff()[:, None]
    costly = torch.stack(
        [
            _costs(scores, found, objects.labels[padded], objects.boxes[padded], costs)
            for scores, found in zip(logits.detach().float(), boxes.detach().float(), strict=True)
        ]
    )
    # objects that are padding are told by infinity, so that no lengths need a transfer of their own
    table = costly.nan_to_num(_IMPOSSIBLE, _IMPOSSIBLE, -_IMPOSSIBLE).masked_fill(~real[:, None], np.inf)
    matched = assigned(table.cpu().numpy()).to(logits.device, non_blocking=True)
    layer, sample, query, own = matched
    return (layer * size + sample) * queries + query, starts[sample, 0] + own


def _costs(logits: Tensor, boxes: Tensor, labels: Tensor, truths: Tensor, costs: MatchCosts) -> Tensor:
    """Returns what each object of an image costs each prediction: [b Q M], from [b Q z+1], [b Q 4], [b M],
    [b M 4].
    """
    right = logits.softmax(-1).gather(2, labels[:, None].expand(-1, logits.shape[1], -1))
    far = torch.cdist(boxes, to_centres(truths.float()), p=1)
    near = generalized_iou(to_corners(boxes)[:, :, None], truths[:, None].float())
    return costs.distance * far - costs.probability * right - costs.overlap * near


def assigned(table: np.ndarray) -> Tensor:
    """Solves the assignment of each layer and image: [L b Q M], infinite for objects that are not there.

    Shapes:
        returns  [4 k]  int64: layer, image, query and object of each pair, objects in order
    Raises: ConfigError without scipy.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # here, because scipy is of the extra `eval`
    except ImportError as error:
        raise ConfigError("a detection objective needs scipy; pip install 'flava-ds[eval]'") from error
    counts = np.isfinite(table[0, :, 0]).sum(-1)
    found = []
    for layer, costs in enumerate(table):
        for image, own in enumerate(counts.tolist()):
            queries, objects = linear_sum_assignment(costs[image, :, :own])
            order = np.argsort(objects)
            where = np.broadcast_to([[layer], [image]], (2, len(order)))
            found.append(np.concatenate([where, queries[None, order], objects[None, order]]))
    return torch.from_numpy(np.concatenate(found, axis=1).astype(np.int64))
