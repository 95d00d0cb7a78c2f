"""Payloads of a step's collectives in bytes, from parameter groups; docs/communication.md counts them.

For G bytes of gradients and P bytes of weights, ring algorithms (flava_ds/watching/communication.py) make
each of w ranks send

    stage 0      all_reduce G                           2 (w - 1) / w G
    stages 1, 2  reduce_scatter G, all_gather P         (w - 1) / w (G + P)
    stage 3      reduce_scatter G, all_gather P twice   (w - 1) / w (G + 2 P)

where stage 3 gathers for the forward pass and again for the backward pass, unless it keeps the weights.

Source: Rajbhandari et al., ZeRO (arXiv 1910.02054), section 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from flava_ds.scaling.work import ModelWork
from flava_ds.scaling.zero import Zero


def payloads(
    model: ModelWork, source: str, zero: Zero, world: int, samples: int, objectives: int
) -> dict[tuple[str, str], int]:
    """Returns (part, collective) -> payload of a step; `samples` of `source` on each rank.

    Covers a step without log record or checkpoint. Gradients travel at the width of the weights; in stages 1
    and 2 DeepSpeed sends them in an all_reduce of which each rank keeps its part, or, with
    use_multi_rank_bucket_allreduce off, in a reduce to each part's owner. ZeRO-3 is described after a step of
    the same kind; a module that the forward pass calls twice may be gathered once more.
    """
    work, width = model.kinds[source], zero.width
    counts = 8 * (5 + objectives)  # a rank's row; it passes on all but one (ranks/distributed.py)
    rows = {("counts", "send"): (world - 1) * counts, ("gradient norm", "all_reduce"): 4}
    exchanged = sum(round(amount.at(samples * world)) for amount in work.exchanged.values())
    if exchanged:
        rows["contrastive loss", "all_gather"] = exchanged
    if zero.stage == 0:
        return rows | {("gradients", "all_reduce"): width * model.trainable}  # idle ones are sent as zeros
    used = [width * n for n in model.tensors_used_by(work.kind)]
    if zero.stage == 3:
        rows["gradient norm", "all_reduce"] += 8 * len(model.groups)  # DeepSpeed's own, which is not used
        return rows | _partitioned(model, used, zero, world)
    collective = "all_reduce" if zero.multi_rank_all_reduce else "reduce"
    groups = [width * group.elements for group in model.groups]
    return rows | {
        ("gradients", collective): sum(used),
        ("weights", "all_gather"): _padded(groups, 2 * width * world),  # two elements of every rank
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
