"""Payloads of a step's collectives in bytes, from parameter groups; docs/communication.md counts them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flava_ds.scaling.work import ModelWork
from flava_ds.scaling.zero import Zero


def payloads(
    model: ModelWork, source: str, zero: Zero, world: int, samples: int, objectives: int
) -> dict[tuple[str, str], int]:
    """Returns (part, collective) -> payload of a step; `samples` of `source` on each rank.

    Gradients travel at the width of the weights. ZeRO-3 is described after a step of the same kind.
    """
    work, width = model.kinds[source], zero.width
    rows = {("counts", "all_gather"): world * 8 * (4 + objectives), ("gradient norm", "all_reduce"): 4}
    exchanged = sum(round(amount.at(samples * world)) for amount in work.exchanged.values())
    if exchanged:
        rows["contrastive loss", "all_gather"] = exchanged
    if zero.stage == 0:
        return rows | {("gradients", "all_reduce"): width * model.trainable}
    used = [width * n for group in model.groups if work.kind in group.kinds for n in group.tensors]
    if zero.stage == 3:
        rows["gradient norm", "all_reduce"] += 8 * len(model.groups)
        return rows | _partitioned(model, used, zero, world)
    collective = "all_reduce" if zero.multi_rank_all_reduce else "reduce"
    groups = [width * group.elements for group in model.groups]
    return rows | {
        ("gradients", collective): sum(used),
        ("weights", "all_gather"): _padded(groups, 2 * width * world),
    }


def _partitioned(model: ModelWork, used: list[int], zero: Zero, world: int) -> dict[tuple[str, str], int]:
    """ZeRO-3: gradients are scattered; small weights are gathered after each update, large ones when used."""
    width, threshold = zero.width, zero.width * zero.persistence
    sizes = [width * n for group in model.groups for n in group.tensors]
    small, large = [size for size in sizes if size <= threshold], [size for size in used if size > threshold]
    times = 1 if zero.keeps_gathered(model.trainable) else 2
    gathered = _padded(small, width * world) + times * _padded(large, width * world)
    return {
        ("gradients", "reduce_scatter"): _padded(used, width * world),
        ("weights", "all_gather"): gathered,
    }


def _padded(sizes: Iterable[int], multiple: int) -> int:
    """Adds up sizes, each rounded up to a multiple."""
    return sum(math.ceil(size / multiple) * multiple for size in sizes)
