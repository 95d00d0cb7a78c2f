"""Embeddings of the regions of an image, and positions in packed sequences of a text and its regions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.layers.fused import LayerNorm, ResidualLayerNorm

BoxNumbers = Literal[4, 5, 6, 7]
"""How many numbers describe a box: its corners; and its area; and its edges; and both."""
SINES = 2048
"""Numbers of a box's sine encoding: its centre, width and height, 512 of each."""
_WAVE = 1000.0
_PIXELS = 100.0


@dataclass(frozen=True)
class PackedImages:
    """The regions of several images, on the model's device.

    Shapes:
        features    [O y]
        boxes       [O 4]  fp32, x1 y1 x2 y2 as shares of width and height
        cu_seqlens  [b+1]  int32
        masked      [k]    int64, rows whose features are hidden from the model; None for none
    """

    features: Tensor
    boxes: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, *, masked: bool = False) -> PackedImages:
        """Returns the regions of a batch, with the masked ones hidden or none."""
        return cls(
            batch["region_features"],
            batch["region_boxes"],
            batch["region_cu_seqlens"],
            batch.numbers["region_max_seqlen"],
            batch["region_hidden_rows"] if masked else None,
        )

    def visible(self, dtype: torch.dtype) -> Tensor:
        """Returns the features, those of masked rows zero: [O y]."""
        features = self.features.to(dtype)
        return features if self.masked is None else features.index_fill(0, self.masked, 0)


@dataclass(frozen=True)
class JointLayout:
    """Positions in the sequences [text | regions] of samples, both of any length; nothing waits for the
    device.

    Shapes:
        text_cu_seqlens    [b+1]  int32, of the packed texts alone
        region_cu_seqlens  [b+1]  int32, of the packed regions alone
        max_seqlen         int    the longest joint sequence
    """

    text_cu_seqlens: Tensor
    region_cu_seqlens: Tensor
    max_seqlen: int

    @property
    def cu_seqlens(self) -> Tensor:
        """Boundaries of the joint sequences: [b+1] int32."""
        return self.text_cu_seqlens + self.region_cu_seqlens

    @property
    def text_starts(self) -> Tensor:
        """The joint row of each text's first token, its CLS: [b]."""
        return self.cu_seqlens[:-1].long()

    def text_rows(self, tokens: Tensor) -> Tensor:
        """Returns the joint rows of packed tokens: [k] -> [k]."""
        sample = torch.bucketize(tokens, self.text_cu_seqlens[1:].long(), right=True)
        return tokens + self.region_cu_seqlens[sample]

    def region_rows(self, regions: Tensor) -> Tensor:
        """Returns the joint rows of packed regions: [k] -> [k]."""
        sample = torch.bucketize(regions, self.region_cu_seqlens[1:].long(), right=True)
        return regions + self.text_cu_seqlens[sample + 1]

    def join(self, words: Tensor, regions: Tensor) -> Tensor:
        """Lays each text before its regions: [T d], [O d] -> [T+O d]."""
        joint = words.new_empty(words.shape[0] + regions.shape[0], words.shape[1])
        for rows, own in ((self.text_rows, words), (self.region_rows, regions)):
            joint.index_copy_(0, rows(torch.arange(own.shape[0], device=own.device)), own.to(joint.dtype))
        return joint


def numbers_of_boxes(boxes: Tensor, count: BoxNumbers) -> Tensor:
    """Describes boxes by x1 y1 x2 y2, then by w h unless `count` is 4 or 5, then by w*h if it is odd.

    Shapes:
        boxes    [O 4]  shares of width and height
        returns  [O count]
    Source: the code of LXMERT (4), ViLBERT (5), VinVL (6) and UNITER (7).
    """
    edges = boxes[:, 2:] - boxes[:, :2]
    parts = [boxes] + [edges] * (count >= 6) + [edges.prod(1, keepdim=True)] * (count % 2)
    return torch.cat(parts, dim=1)


def sines_of_boxes(boxes: Tensor) -> Tensor:
    """Encodes centre x, centre y, width and height, as percent of the image's edges, by sines and cosines of
    256 wavelengths each: [O 4] -> [O 2048].

    Source: Su et al. 2020, VL-BERT, section 3.2, and its code.
    """
    centres, edges = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    places = torch.cat([centres, edges], dim=1) * _PIXELS
    waves = SINES // 8
    steps = torch.arange(waves, device=boxes.device, dtype=boxes.dtype) / waves
    angles = places[:, :, None] / torch.exp(steps * math.log(_WAVE))
    return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "O four wave -> O (four wave)")


class AddedRegions(nn.Module):
    """Maps features and boxes to the hidden width and adds them up, as UNITER, LXMERT and ViLBERT do.

    With `apart` each is normalised before the sum, with `normed` the sum is; `forward` may add more to it.

    Shapes:
        features  [O y]
        boxes     [O 4]
        more      [O d] or [d]
        returns   [O d]
    """

    def __init__(
        self, feature_size: int, hidden_size: int, eps: float, count: BoxNumbers, *, apart: bool, normed: bool
    ):
        super().__init__()
        self.count = count
        self.features = nn.Linear(feature_size, hidden_size)
        self.boxes = nn.Linear(count, hidden_size)
        self.feature_norm = LayerNorm(hidden_size, eps=eps) if apart else nn.Identity()
        self.box_norm = LayerNorm(hidden_size, eps=eps) if apart else nn.Identity()
        self.norm = ResidualLayerNorm(hidden_size, eps=eps) if normed else None

    def forward(self, features: Tensor, boxes: Tensor, more: Tensor | None = None) -> Tensor:
        numbers = numbers_of_boxes(boxes, self.count).to(features.dtype)
        content, place = self.feature_norm(self.features(features)), self.box_norm(self.boxes(numbers))
        place = place if more is None else place + more
        return content + place if self.norm is None else self.norm(content, place)[0]


class JoinedRegions(nn.Module):
    """Maps each feature and its box together, as VinVL does with six numbers and VL-BERT with sines.

    Numbers are followed by a LayerNorm, sines by ReLU.

    Shapes:
        features  [O y]
        boxes     [O 4]
        returns   [O d]
    """

    def __init__(self, feature_size: int, hidden_size: int, eps: float, boxes: Literal["numbers", "sines"]):
        super().__init__()
        self.sines = boxes == "sines"
        self.dense = nn.Linear(feature_size + (SINES if self.sines else 6), hidden_size)
        self.after: nn.Module = nn.ReLU() if self.sines else LayerNorm(hidden_size, eps=eps)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        places = sines_of_boxes(boxes) if self.sines else numbers_of_boxes(boxes, 6)
        return self.after(self.dense(torch.cat([places.to(features.dtype), features], dim=1)))
