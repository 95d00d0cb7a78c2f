"""Softmax and gradient of a chunk of logits in torch operators, for CPUs and unsupported inputs."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a row that does not count."""

REFERENCE_BLOCK_BYTES = 2**20
"""fp32 logits that the reference's softmax processes at a time: they should fit a core's cache."""


def forward_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each row's loss, whether it was correct, and G: [k], [k], [k v].

    G is the memory of the bare logits unless `gradients`.
    """
    logits, wide_bias = hidden @ weight.T, bias.to(torch.promote_types(hidden.dtype, torch.float32))
    counts = labels != IGNORE_INDEX
    places, counts = (
        torch.where(counts, labels, 0)[:, None],
        counts.to(torch.promote_types(logits.dtype, torch.float32))[:, None],
    )
    losses, right = torch.empty_like(counts), torch.empty_like(counts)
    step = max(1, REFERENCE_BLOCK_BYTES // (4 * max(logits.shape[1], 1)))
    for start in range(0, logits.shape[0], step):
        block = slice(start, start + step)
        z, place, count = logits[block].to(counts.dtype).add_(wide_bias), places[block], counts[block]
        largest, target = z.amax(-1, keepdim=True), z.gather(1, place)
        torch.mul(_is_first_of_largest(z, place, target == largest), count, out=right[block])
        total = z.sub_(largest).exp_().sum(-1, keepdim=True)
        torch.mul(total.log() - (target - largest), count, out=losses[block])
        if gradients:
            z.mul_(count / total).scatter_add_(1, place, -count)
            if z.dtype != logits.dtype:
                logits[block] = z
    return losses[:, 0], right[:, 0], logits


def _is_first_of_largest(z: Tensor, place: Tensor, largest: Tensor) -> Tensor:
    """Returns True where a row's label is its first largest class: [k v], [k 1], [k 1] -> [k 1].

    `largest` marks rows where no class is larger. On a CPU torch finds a maximum four times as fast as its
    position, so only these rows are searched.
    """
    if z.device.type == "cpu":
        rows = largest[:, 0].nonzero()[:, 0]
        return largest.index_copy_(0, rows, z[rows].argmax(-1, keepdim=True) == place[rows])
    return largest & (z.argmax(-1, keepdim=True) == place)
