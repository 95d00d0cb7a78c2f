"""Concatenation of packed sequences of several origins, sample by sample.

fused_i = [cls | image_i | text_i]
"""

from __future__ import annotations

import torch
from torch import Tensor


def fuse_sequences(cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor) -> Tensor:
    """Builds the packed multimodal sequences.

    Shapes:
        cls_token        [d]
        image            [b*s d]      the same s for every sample
        text             [T d]        packed
        text_cu_seqlens  [b+1]        int32
        returns          [b+b*s+T d]  per sample: the CLS, its s image rows, its text rows
    """
    return forward_reference(cls_token, image, text, text_cu_seqlens)


def forward_reference(cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor) -> Tensor:
    """Concatenates everything once and gathers it into order."""
    batch = text_cu_seqlens.shape[0] - 1
    image_length = image.shape[0] // max(batch, 1)
    cu = text_cu_seqlens.long()
    sample = torch.arange(batch, device=cu.device)
    start = cu[:-1] + sample * (1 + image_length)
    image_rows = (start[:, None] + 1 + torch.arange(image_length, device=cu.device)).flatten()
    tokens = torch.arange(text.shape[0], device=cu.device)
    text_rows = tokens + (1 + image_length) * (torch.bucketize(tokens, cu[1:], right=True) + 1)
    fused = torch.cat([cls_token.expand(batch, -1), image, text])
    order = torch.empty(fused.shape[0], dtype=torch.long, device=cu.device)
    order[torch.cat([start, image_rows, text_rows])] = torch.arange(fused.shape[0], device=cu.device)
    return fused.index_select(0, order)
