"""Rounds the lengths of a batch's packed texts and lists of rows up, so that few shapes occur.

Tokens behind the last text are cut into sequences of their own, none longer than a text may be. So they are
rows like any others to every operator, but nobody reads them, and their gradients are zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import IGNORE_INDEX, PADDING_ROW

FILLERS = {
    "input_ids": 0,
    "input_ids_masked": 0,
    "mlm_rows": PADDING_ROW,
    "mlm_labels": IGNORE_INDEX,
    "mim_rows": PADDING_ROW,
    "matched_rows": PADDING_ROW,
}
"""Tensors of a batch whose lengths vary, and what they are padded with."""


def padded(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, int], multiple: int, max_tokens: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Pads a batch's tensors to a length that is a multiple of `multiple`; no text has over `max_tokens`."""
    found, known = dict(tensors), dict(numbers)
    for name in FILLERS.keys() & tensors.keys():
        length = known[name] = tensors[name].shape[0]
        found[name] = F.pad(tensors[name], (0, rounded_up(length, multiple) - length), value=FILLERS[name])
    for prefix in ("", "masked_"):
        if (bounds := tensors.get(f"{prefix}cu_seqlens")) is not None:
            found[f"{prefix}padding_ends"] = padding_ends(int(bounds[-1]), multiple, max_tokens)
            known[f"{prefix}max_seqlen"] = max_tokens
    return found, known


def rounded_up(length: int, multiple: int) -> int:
    """Returns the next multiple; at least one, so that a list without rows has the shape of others."""
    return max(1, -(-length // multiple)) * multiple


def padding_ends(total: int, multiple: int, longest: int) -> Tensor:
    """Returns where sequences of padding end behind `total` tokens: [p] int32.

    They are as many for every `total`, and the last ones may be empty.
    """
    count, end = -(-(multiple - 1) // longest), rounded_up(total, multiple)
    return torch.tensor([min(total + (n + 1) * longest, end) for n in range(count)], dtype=torch.int32)


def padding_bytes(multiple: int) -> int:
    """Returns an upper bound of what padding adds to a batch."""
    return 8 * multiple * (len(FILLERS) + 1)
