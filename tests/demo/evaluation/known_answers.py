"""A stand-in for a trained model whose answers are known: what it embeds is written down, not learned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sample_runs import WORDS


class KnownAnswers:
    """Embeds an image as the one-hot vector of the word that `sees(concept)` names, a text as that of the
    word it contains.
    """

    device = torch.device("cpu")

    def __init__(self, sees: Callable[[str], str]):
        self.sees = sees

    def image_embeddings(self, samples, asked_by) -> torch.Tensor:
        rows = np.array([WORDS.index(self.sees(concept)) for concept in samples.column("concept")])
        return torch.eye(len(WORDS))[rows]

    image_features = image_embeddings

    def text_embeddings(self, texts, asked_by) -> torch.Tensor:
        return torch.stack(
            [torch.eye(len(WORDS))[[word in text.split() for word in WORDS].index(True)] for text in texts]
        )
