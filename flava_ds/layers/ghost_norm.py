"""Batch normalisation over small groups of consecutive samples, the same for every number of ranks; or by
fixed moments.

Source: Hoffer et al. 2017, "Train longer, generalize better", ghost batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.layers.transformer import at_least_fp32


class FixedPrecision(nn.Module):
    """A module whose buffers never get narrower than fp32."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Moves everything; buffers never get narrower than fp32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, own in before.items():
            moved = self._buffers[name]
            if moved is not None and own is not None and moved.dtype.itemsize < 4:
                source = moved if own.is_meta else own
                self._buffers[name] = source.to(moved.device, torch.float32)
        return self


class FrozenBatchNorm(FixedPrecision):
    """Normalises each channel by fixed moments, with a fixed gain and bias: [b c H W] -> the same.

    Nothing is trained; all four are buffers with the names of torch's BatchNorm2d, fp32 at least.

    Source: Carion et al. 2020, DETR, section 4.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, hidden: Tensor) -> Tensor:
        moments = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(hidden, *moments, eps=1e-5)


class GhostBatchNorm(FixedPrecision):
    """Normalises each channel over groups of `group` consecutive samples, statistics in fp32 at least.

    A group never depends on the rest of a micro-batch, so a global batch gives the same numbers however it is
    divided, if micro-batches are whole groups. Training changes no buffer: `seen` keeps the moments of the
    last pass with a graph, and a training state averages them for evaluation, which normalises by the
    buffers (training/batch_norms.py). Parameters and buffers have the names of torch's BatchNorm2d.

    Shapes:
        hidden                     [b c H W] -> the same
        running_mean, running_var  [c]    fp32 at least, whatever the dtype of the module
        seen                       [2 c]  sums over groups of the mean and the unbiased variance, and the
                                          number of groups; None before a pass in training
    Raises: ValueError in training for samples that are no whole groups.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, group: int = 16, eps: float = 1e-5):
        super().__init__()
        self.group, self.eps = group, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.seen: tuple[Tensor, int] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = at_least_fp32(self.weight), at_least_fp32(self.bias)
        if not self.training:
            return F.batch_norm(hidden, self.running_mean, self.running_var, weight, bias, eps=self.eps)
        groups = hidden.shape[0] // self.group
        if groups * self.group != hidden.shape[0]:
            raise ValueError(f"{hidden.shape[0]} samples are no whole groups of {self.group}")
        # The groups of a channel become channels of one call, which writes their moments (momentum 1).
        folded = hidden.unflatten(0, (groups, self.group)).transpose(0, 1).flatten(1, 2)
        mean, variance = (torch.zeros_like(weight).repeat(groups) for _ in range(2))
        normed = F.batch_norm(
            folded, mean, variance, weight.repeat(groups), bias.repeat(groups), True, 1.0, self.eps
        )
        if torch.is_grad_enabled():
            self.seen = torch.stack([own.view(groups, -1).sum(0) for own in (mean, variance)]), groups
        return normed.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)
