"""ALIGN: an EfficientNet's mean features, and a BERT's CLS projected into their space."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.families.align.config import AlignConfig
from flava_ds.families.bert.model import BertEncoder
from flava_ds.layers.efficientnet import EfficientNet, initialize_as_efficientnet
from flava_ds.layers.heads import ContrastedModel
from flava_ds.layers.hidden_dropout import hidden_dropout
from flava_ds.layers.transformer import Encoded, at_least_fp32, clamped
from flava_ds.layers.words import PackedIds, initialize_as_bert

LEAST_TEMPERATURE = 0.001
"""Smaller temperatures, and those below 0, count as this."""


@dataclass(frozen=True)
class Means:
    """The view "image": one row per image, [b c]."""

    hidden: Tensor

    def rows(self, rows: Tensor) -> Tensor:
        """Returns the chosen images' features: [k] -> [k c]."""
        return self.hidden.index_select(0, rows)


class Align(ContrastedModel):
    """Encodes the requested views of a batch: "image" and "text"."""

    def __init__(self, config: AlignConfig):
        super().__init__()
        image = config.image
        self.config = config
        self.image_encoder = EfficientNet(
            image.width, image.depth, image.image_mean, image.image_std, image.norm_group
        )
        self.text_encoder = BertEncoder(config.text)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor([config.temperature_init]))

    @property
    def logit_scale(self) -> Tensor:
        """Log of what similarities are multiplied by: [1]."""
        return -clamped(self.temperature, math.inf, LEAST_TEMPERATURE).log()

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Means | Encoded]:
        """Encodes each of `views` once; `reads` names the rows of a text that will be read, sorted: [k]."""
        encoded: dict[str, Means | Encoded] = {}
        if "image" in views:
            paths = batch.get("block_paths") if self.training else None
            encoded["image"] = Means(self.image_features(batch["pixel_values"], paths))
        if "text" in views:
            texts, probability = PackedIds.of(batch), self.config.text.hidden_dropout
            total = texts.ids.shape[0]
            drops = hidden_dropout(batch, probability, texts.cu_seqlens, total, 0, on=self.training)
            keep = (reads or {}).get("text")
            encoded["text"] = self.text_encoder.encode_texts(texts, keep=keep, drops=drops)
        return encoded

    def image_features(self, pixel_values: Tensor, paths: Tensor | None = None) -> Tensor:
        """Encodes images: [b 3 H W] -> [b c]; `paths` [b blocks] is stochastic depth's."""
        return self.image_encoder(pixel_values, paths).mean((2, 3))

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each image, or of each text's CLS: [b]."""
        if view == "text":
            return batch["cu_seqlens"][:-1].long()
        return torch.arange(batch.size, device=batch["pixel_values"].device)

    def image_embeddings(self, rows: Tensor) -> Tensor:
        """L2-normalises image features in fp32 or better, into whose space texts are projected:
        [b c] -> [b c].
        """
        return F.normalize(at_least_fp32(rows), dim=-1)

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does: its tower's."""
        return {f"{view}_encoder.{name}" for name, _ in getattr(self, f"{view}_encoder").named_parameters()}


def initialize(model: Align) -> None:
    """Draws each tower's initial weights as its published code does."""
    initialize_as_bert(model, model.config.initializer_range)
    initialize_as_efficientnet(model.image_encoder)
