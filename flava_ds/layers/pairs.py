"""Positions in packed sequences of an image and a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from flava_ds.batch import Packed, with_padding


@dataclass(frozen=True)
class SequenceLayout:
    """Positions in the fused sequence [own tokens | n patches | text] of each sample.

    Shapes:
        text_cu_seqlens  [b+1]  int32, of the packed text alone
        padding_ends     [p]    int32, of the sequences of padding behind the last text; None without
    """

    num_patches: int
    text_cu_seqlens: Tensor
    text_max_seqlen: int
    own: int = 2
    """Tokens before the patches: FLAVA's CLS_M and CLS_I, or ViLT's CLS_I."""
    padding_ends: Tensor | None = None

    @property
    def prefix(self) -> int:
        """Tokens before a sample's text."""
        return self.own + self.num_patches

    @property
    def cu_seqlens(self) -> Tensor:
        """Boundaries of the fused sequences: [b+1] int32."""
        cu = self.text_cu_seqlens
        return cu + self.prefix * torch.arange(cu.shape[0], device=cu.device, dtype=cu.dtype)

    @property
    def bounds(self) -> Tensor:
        """Boundaries of the fused sequences and of those of padding behind them: [b+p+1] int32."""
        ends, samples = self.padding_ends, self.text_cu_seqlens.shape[0] - 1
        return with_padding(self.cu_seqlens, None if ends is None else ends + self.prefix * samples)

    @property
    def copied_texts(self) -> tuple[Tensor, int]:
        """Boundaries [b+1] and the greatest length of what stands behind each sample's patches.

        That is its text, and all padding behind the last sample's.
        """
        if self.padding_ends is None:
            return self.text_cu_seqlens, self.text_max_seqlen
        end = with_padding(self.text_cu_seqlens, self.padding_ends)[-1:]
        longest = self.text_max_seqlen * (1 + self.padding_ends.shape[0])
        return torch.cat([self.text_cu_seqlens[:-1], end]), longest

    @property
    def max_seqlen(self) -> int:
        """Length of the longest fused sequence."""
        return self.prefix + self.text_max_seqlen

    @property
    def text_starts(self) -> Tensor:
        """The fused row of each text's first token: [b]."""
        return self.cu_seqlens[:-1].long() + self.prefix

    def patch_rows(self, patches: Tensor) -> Tensor:
        """Returns the fused rows of flat patch indices into [b n]: [k] -> [k]."""
        sample = patches // self.num_patches
        return self.cu_seqlens[sample].long() + self.own + patches % self.num_patches

    def text_rows(self, tokens: Tensor) -> Tensor:
        """Returns the fused rows of packed text rows: [k] -> [k]."""
        sample = torch.bucketize(tokens, self.text_cu_seqlens[1:].long(), right=True)
        return tokens + self.prefix * (sample + 1)


def prefixed(rows: Tensor, texts: Packed) -> Packed:
    """Puts rows before each packed text: [b n d], [T d] -> [b*n+T d]."""
    count, length = rows.shape[:2]
    layout = SequenceLayout(length, texts.cu_seqlens, texts.max_seqlen, own=0)
    first, hidden = rearrange(rows, "b n d -> (b n) d"), texts.hidden
    places = [
        place(torch.arange(own.shape[0], device=own.device))
        for place, own in ((layout.patch_rows, first), (layout.text_rows, hidden))
    ]
    both = torch.cat([first, hidden.to(first.dtype)])
    joined = torch.empty_like(both).index_copy(0, torch.cat(places), both)
    return Packed(joined, layout.cu_seqlens, layout.max_seqlen)
