"""Heads between an encoder's rows and a loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from flava_kernels.linear_cross_entropy import linear_cross_entropy
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.layers.fused import LayerNorm, LinearGELU
from flava_ds.layers.transformer import Pooler, at_least_fp32

CONTRASTIVE = ("image_projection", "text_projection", "logit_scale", "temperature")
"""Parts of a model that only contrastive objectives use."""


class TransformHead(nn.Module):
    """Dense, GELU and LayerNorm, before what the head is for. Source: BERT's prediction head."""

    def __init__(self, hidden_size: int, layer_norm_eps: float):
        super().__init__()
        self.dense = LinearGELU(hidden_size, hidden_size)
        self.norm = LayerNorm(hidden_size, eps=layer_norm_eps)

    def transform(self, hidden: Tensor) -> Tensor:
        """Computes everything before the classifier: [k d] -> [k d]."""
        return self.norm(self.dense(hidden))


class MaskedPredictionHead(TransformHead):
    """Dense, GELU, LayerNorm and a classifier over a vocabulary, not tied to an embedding.

    Source: paper, section 3.2; BERT's prediction head.
    """

    def __init__(self, hidden_size: int, vocab_size: int, layer_norm_eps: float):
        super().__init__(hidden_size, layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns scores over the vocabulary: [k d] -> [k v]."""
        return self.decoder(self.transform(hidden))

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the summed cross-entropy and the number of correct predictions: [k d], [k] -> scalars."""
        return linear_cross_entropy(self.transform(hidden), self.decoder.weight, self.decoder.bias, labels)


class TiedPredictionHead(TransformHead):
    """Dense, GELU, LayerNorm, and the model's word embeddings as the classifier, with a bias of its own.

    Source: Devlin et al. 2019, BERT, its published code.
    """

    def __init__(self, hidden_size: int, vocab_size: int, layer_norm_eps: float):
        super().__init__(hidden_size, layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def logits(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Returns scores over the vocabulary: [k d], [v d] -> [k v]."""
        return F.linear(self.transform(hidden), words, self.bias)

    def loss(self, hidden: Tensor, labels: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the summed cross-entropy and the number of correct predictions: [k d], [k] -> scalars."""
        return linear_cross_entropy(self.transform(hidden), words, self.bias, labels)


def tied_words(head: Any, model: Any) -> tuple[Tensor, ...]:
    """Returns what a head of words takes besides the states: the model's word embeddings if it is tied."""
    return (model.word_table(),) if isinstance(head, TiedPredictionHead) else ()


class TiedFeatureHead(TransformHead):
    """Dense, GELU, LayerNorm, and back through the model's map of features, with a bias of its own.

    Source: Chen et al. 2020, UNITER, section 3.2.
    """

    def __init__(self, hidden_size: int, feature_size: int, layer_norm_eps: float):
        super().__init__(hidden_size, layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(feature_size))

    def logits(self, hidden: Tensor, table: Tensor) -> Tensor:
        """Returns features: [k d], [d y] -> [k y]."""
        return F.linear(self.transform(hidden), table.t(), self.bias)


class ContrastedModel(nn.Module):
    """A model that projects images and texts into one space; its temperature is a parameter, too."""

    image_projection: nn.Linear
    text_projection: nn.Linear

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each sequence's first token in a view's packed output: [b]."""
        raise NotImplementedError

    def embedding_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the rows that are embedded, each image's and each text's first one, by view: [b]."""
        return {view: self.first_rows(view, batch) for view in ("image", "text")}

    def image_embeddings(self, rows: Tensor) -> Tensor:
        """Projects images' rows, L2-normalised in fp32 or better: [b d] -> [b r]."""
        return F.normalize(at_least_fp32(self.image_projection(rows)), dim=-1)

    def text_embeddings(self, rows: Tensor) -> Tensor:
        """Projects texts' rows, L2-normalised in fp32 or better: [b d] -> [b r]."""
        return F.normalize(at_least_fp32(self.text_projection(rows)), dim=-1)

    def contrastive_parameters(self) -> set[str]:
        """Returns the names of the parameters that only a contrastive objective uses."""
        return {name for name, _ in self.named_parameters() if name.partition(".")[0] in CONTRASTIVE}


class MatchingHead(nn.Module):
    """Pooler over CLS_M and a classifier into mismatch (0) and match (1): [b d] -> [b 2]."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.pooler = Pooler(hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, first: Tensor) -> Tensor:
        return self.classifier(self.pooler(first))
