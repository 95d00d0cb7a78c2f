"""Packed texts, BERT's embeddings over them, and its initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.layers.embedding import Embedding
from flava_ds.layers.fused import ResidualLayerNorm
from flava_ds.layers.hidden_dropout import HiddenDropout
from flava_ds.layers.transformer import Pooler


@dataclass(frozen=True)
class PackedIds:
    """Encoded texts, concatenated, on the model's device.

    Shapes:
        ids         [T]    int64
        cu_seqlens  [b+1]  int32
    """

    ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def of(cls, batch: Batch, ids: str = "input_ids", prefix: str = "") -> PackedIds:
        """Returns texts of a batch, by the name of their ids and the prefix of their bounds."""
        return cls(batch[ids], batch[f"{prefix}cu_seqlens"], batch.numbers[f"{prefix}max_seqlen"])

    def packed(self, hidden: Tensor) -> Packed:
        """Returns a state for each token, packed as they are: [T d]."""
        return Packed(hidden, self.cu_seqlens, self.max_seqlen)


def pack(texts: Sequence[np.ndarray], device: torch.device) -> PackedIds:
    """Concatenates encoded texts: b arrays of ids, each with its CLS and SEP."""
    lengths = [len(text) for text in texts]
    cu_seqlens = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
    ids = torch.from_numpy(np.concatenate(texts))
    return PackedIds(ids.to(device), cu_seqlens.to(device), max(lengths))


class WordsShape(Protocol):
    """What BERT's embeddings need of an encoder's configuration."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...

    @property
    def type_vocab_size(self) -> int: ...

    @property
    def layer_norm_eps(self) -> float: ...


class BertEmbeddings(nn.Module):
    """Adds word, position and token-type embeddings and normalises; positions restart in each text.

    Source: Devlin et al. 2019, BERT, section 3.
    """

    def __init__(self, shape: WordsShape):
        super().__init__()
        self.words = Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.token_types = Embedding(shape.type_vocab_size, shape.hidden_size)
        self.norm = ResidualLayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(
        self, texts: PackedIds, token_types: Tensor | None = None, drops: HiddenDropout | None = None
    ) -> Tensor:
        """Embeds packed ids; `drops` drops elements of the results.

        Shapes:
            token_types  [T]  int64; None for a single segment, of type 0
            returns      [T d]
        """
        _, position = places(texts.cu_seqlens, texts.ids.shape[0])
        types = torch.zeros_like(texts.ids) if token_types is None else token_types
        normed, _ = self.norm(self.words(texts.ids), self.positions(position) + self.token_types(types))
        return normed if drops is None else drops(normed)


class PooledWords(nn.Module):
    """A model of one transformer, with BERT's embeddings and a pooler that some objectives read."""

    embeddings: BertEmbeddings
    pooler: Pooler

    def pooled(self, first: Tensor) -> Tensor:
        """Returns dense and tanh over states of texts' CLS: [b d] -> [b d]."""
        return self.pooler(first)

    def word_table(self) -> Tensor:
        """Returns the word embeddings: [v d]."""
        return self.embeddings.words.weight

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does: all but the pooler's."""
        return {name for name, _ in self.named_parameters()} - self.pooler_parameters()

    def pooler_parameters(self) -> set[str]:
        """Returns the names of the pooler's parameters."""
        return {f"pooler.{name}" for name, _ in self.pooler.named_parameters()}


@torch.no_grad()
def initialize_as_bert(module: nn.Module, std: float, plain: tuple[str, ...] = ()) -> None:
    """Draws weights and tables from a normal distribution cut at two deviations, and parameters whose names
    end in one of `plain` from a whole one; biases are zero.

    Source: Devlin et al. 2019, BERT, its published code.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if plain and name.endswith(plain):
            nn.init.normal_(parameter, std=std)
