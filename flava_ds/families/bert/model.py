"""BERT: a post-norm transformer over packed texts of one or two segments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout
from flava_ds.layers.transformer import Encoded, Pooler, Transformer
from flava_ds.layers.words import BertEmbeddings, PackedIds, PooledWords, pack

IDS = {"text": "input_ids", "text_masked": "input_ids_masked"}
"""The ids that each view encodes."""


class BertEncoder(nn.Module):
    """Embeddings and post-norm blocks, over packed texts."""

    def __init__(self, shape: BertTextConfig):
        super().__init__()
        self.embeddings = BertEmbeddings(shape)
        self.transformer = Transformer(shape, post_norm=True)

    def encode_texts(
        self,
        texts: PackedIds,
        token_types: Tensor | None = None,
        keep: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> Encoded:
        """Encodes packed texts: [T] -> [T d]; `keep` names the rows that will be read, sorted: [k]."""
        packed = texts.packed(self.embeddings(texts, token_types, drops))
        hidden = self.transformer(packed, rows=keep, drops=drops)
        return Encoded(texts.packed(hidden), nn.Identity(), keep)

    def first_states(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Returns the CLS states of b arrays of ids, special tokens included: [b d]."""
        packed = pack(texts, self.embeddings.words.weight.device)
        return self.encode_texts(packed, keep=packed.cu_seqlens[:-1].long()).first()


class Bert(BertEncoder, PooledWords):
    """Encodes the requested views of a batch: "text" and "text_masked"."""

    def __init__(self, config: BertConfig):
        super().__init__(config.text)
        self.config = config
        self.pooler = Pooler(config.text.hidden_size)

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes each of `views` once; `reads` names the rows of a view that will be read, sorted: [k]."""
        types, keep, encoded = batch.get("token_types"), reads or {}, {}
        for view in views:
            texts, stream = PackedIds.of(batch, IDS[view]), self.config.views.index(view)
            drops = hidden_dropout(
                batch,
                self.config.text.hidden_dropout,
                texts.cu_seqlens,
                texts.ids.shape[0],
                stream,
                on=self.training,
            )
            encoded[view] = self.encode_texts(texts, types, keep.get(view), drops)
        return encoded

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each text's CLS: [b]."""
        return batch["cu_seqlens"][:-1].long()

    def token_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed tokens, which are the tokens' own: [k] -> [k]."""
        return tokens
