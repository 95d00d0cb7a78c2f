"""The transformer that encodes clean and masked packed text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.families.flava.config import FlavaTextConfig
from flava_ds.layers.embedding import Embedding
from flava_ds.layers.fused import LayerNorm, ResidualLayerNorm
from flava_ds.layers.transformer import Encoded, Transformer, encode_versions, frozen_pooler


class TextEncoder(nn.Module):
    """Encodes token sequences that start with CLS_T; positions restart in each sequence.

    Source: paper, section 3.1; BERT's embeddings.
    """

    def __init__(self, config: FlavaTextConfig, *, pooler: bool = False):
        super().__init__()
        self.config = config
        self.word_embeddings = Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = ResidualLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformer = Transformer(config)
        self.final_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = frozen_pooler(config.hidden_size, pooler)

    def forward(
        self,
        versions: list[Tensor],
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        keep: Sequence[Tensor | None] | None = None,
    ) -> list[Encoded]:
        """Encodes several versions of the same texts (clean, masked) in one packed call.

        Shapes:
            versions    each [T]  int64 ids
            cu_seqlens  [b+1]     int32, the same for every version
            keep        for each version, the rows that will be read; see encode_versions
            returns     one Encoded of [T d] for each version
        """
        _, positions = places(cu_seqlens, versions[0].shape[0])
        place = self.position_embeddings(positions) + self.token_type_embeddings.weight[0]
        hidden, _ = self.embedding_norm(
            self.word_embeddings(torch.cat(versions)), place.repeat(len(versions), 1)
        )
        return encode_versions(
            self.transformer,
            self.final_norm,
            hidden,
            (cu_seqlens, max_seqlen),
            keep or [None] * len(versions),
        )
