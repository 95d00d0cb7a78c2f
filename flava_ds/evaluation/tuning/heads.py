"""Heads that are trained on top of a state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MULTIMODAL_WIDTH = 1536
"""Hidden features of the head for pairs. Source: paper, section 4."""
MakeHead = Callable[[int, int], nn.Module]
"""From the features of a state and the number of outputs."""


class SentenceHead(nn.Module):
    """Dense, tanh and a classifier, as RoBERTa's on GLUE: [b d] -> [b outputs]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.dense, self.classifier = nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, states: Tensor) -> Tensor:
        return self.classifier(self.dense(states).tanh())


class PairHead(nn.Module):
    """Two layers with GELU between them: [b d] -> [b outputs].

    The paper gives the width, but neither the activation nor whether there was dropout.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.dense, self.classifier = nn.Linear(width, MULTIMODAL_WIDTH), nn.Linear(MULTIMODAL_WIDTH, outputs)
        self.activation = nn.GELU()

    def forward(self, states: Tensor) -> Tensor:
        return self.classifier(self.activation(self.dense(states)))


class LinearHead(nn.Linear):
    """One layer, as on a Vision Transformer's CLS: [b d] -> [b outputs]."""


HEADS: dict[str, MakeHead] = {"SentenceHead": SentenceHead, "PairHead": PairHead, "LinearHead": LinearHead}
"""Those that a file of kept weights may name."""


def build_head(make: MakeHead, width: int, outputs: int, seed: int) -> nn.Module:
    """Builds a head with torch's default initialisation of linear layers, drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(width, outputs)
