"""The transformer that encodes packed text, clean and masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.config import TextEncoderConfig
from flava_ds.models.transformer import Encoded, Transformer, add_frozen_pooler


class TextEncoder(nn.Module):
    """Encodes token sequences that begin with CLS_T; positions start anew in each sequence.

    Source: paper, section 3.1; BERT's embeddings.
    """

    def __init__(self, config: TextEncoderConfig, *, pooler: bool = False):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformer = Transformer(config)
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        add_frozen_pooler(self, config.hidden_size, pooler)

    def forward(self, versions: list[Tensor], cu_seqlens: Tensor, max_seqlen: int) -> list[Encoded]:
        """Encodes several versions of the same texts (clean, masked) in one packed call.

        Shapes:
            versions    each [T]  int64 ids
            cu_seqlens  [b+1]     int32, the same for every version
            returns     one Encoded of [T d] for each version
        """
        total, count = versions[0].shape[0], len(versions)
        tokens = torch.arange(total, device=cu_seqlens.device)
        sequence = torch.bucketize(tokens, cu_seqlens[1:].long(), right=True)
        positions = tokens - cu_seqlens.long()[sequence]
        place = self.position_embeddings(positions) + self.token_type_embeddings.weight[0]
        hidden = self.word_embeddings(torch.cat(versions)) + place.repeat(count, 1)
        repeated = torch.cat([cu_seqlens[:1]] + [cu_seqlens[1:] + i * total for i in range(count)]).to(torch.int32)
        packed = self.transformer(Packed(self.embedding_norm(hidden), repeated, max_seqlen))
        return [Encoded(Packed(part, cu_seqlens, max_seqlen), self.final_norm) for part in packed.hidden.chunk(count)]
