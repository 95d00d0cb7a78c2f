"""The transformer over fused sequences [CLS_M | image | text]."""

from __future__ import annotations

import torch
from flava_kernels.fusing import fuse_sequences
from torch import Tensor, nn

from flava_ds.families.flava.config import MultimodalEncoderConfig
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.pairs import SequenceLayout
from flava_ds.layers.transformer import Encoded, Transformer, encode_versions, frozen_pooler


class MultimodalEncoder(nn.Module):
    """Fuses projected image and text states. Padding, if any, is in sequences of its own behind the last.

    Source: paper, section 3.1.
    """

    def __init__(self, config: MultimodalEncoderConfig, *, pooler: bool = False):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.transformer = Transformer(config)
        self.final_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = frozen_pooler(config.hidden_size, pooler)

    def forward(
        self, image: Tensor, text: Tensor, layout: SequenceLayout, *, keep: Tensor | None = None
    ) -> Encoded:
        """Encodes each sample's image and text together.

        Shapes:
            image    [b*(1+n) d]
            text     [T d]
            keep     [k] rows that will be read, sorted; None for all
            returns  Encoded of [b*(2+n)+T d]
        """
        hidden = fuse_sequences(self.cls_token, image, text, *layout.copied_texts)
        return encode_versions(
            self.transformer, self.final_norm, hidden, (layout.bounds, layout.max_seqlen), [keep]
        )[0]
