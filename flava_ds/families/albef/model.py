"""ALBEF: a ViT and a text encoder, each read alone, and layers in which words attend to the image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.albef.config import AlbefConfig
from flava_ds.families.bert.model import BertEncoder
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.layers.cross_attention import CrossBlock
from flava_ds.layers.heads import ContrastedModel
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout
from flava_ds.layers.hidden_dropout import joined as joined_drops
from flava_ds.layers.transformer import Encoded, Transformer
from flava_ds.layers.words import PackedIds, initialize_as_bert

FUSED = ("multimodal_masked", "multimodal")
"""The views in which words attend to an image."""
TEXT, MASKED, NEGATIVE, FUSED_MASKED, OWN, OTHER_IMAGE, OTHER_TEXT = range(7)
"""Streams of dropout: three passes of the text encoder, and those of the layers that fuse."""
TEACHER = 16
"""Where the streams of a teacher's passes begin."""


class Fusion(nn.Module):
    """The layers in which words attend to each other and to the image of their text: [T d] -> [T d]."""

    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.transformer = Transformer(config.fusion, block=CrossBlock)

    def forward(
        self,
        text: Packed,
        image: Packed,
        keep: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> Encoded:
        """Fuses texts with one image each; `keep` names the rows that will be read, sorted: [k]."""
        hidden = self.transformer(text, rows=keep, drops=drops, memory=image)
        return Encoded(replace(text, hidden=hidden), nn.Identity(), keep)


class Albef(ContrastedModel):
    """Encodes the requested views of a batch, each encoder's inputs once.

    "image" and "text" are read alone. "multimodal_masked" is the masked text with its image. "multimodal"
    has three texts with an image for each sample, all first ones first: its own pair, its text with another
    sample's image, and another sample's text with its image (objectives/hard_matching.py).
    """

    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.image, masks=False)
        self.text_encoder = BertEncoder(config.text)
        self.fusion = Fusion(config)
        self.image_projection = nn.Linear(config.image.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor([config.temperature_init]))

    def encode(
        self,
        batch: Batch,
        views: Collection[str],
        reads: Mapping[str, Tensor] | None = None,
        *,
        teaching: bool = False,
    ) -> dict[str, Encoded]:
        """Encodes each of `views` once; `reads` names the rows of a view that will be read, sorted: [k].

        A network that is `teaching` drops elements as in training, but not those of the student.
        """
        keep, found = reads or {}, {}
        texts = PackedIds.of(batch)
        fused, matching = any(view in FUSED for view in views), "multimodal" in views
        if "image" in views and not fused:
            (found["image"],) = self.image_encoder(batch["pixel_values"], keep=[keep.get("image")])
        if "text" in views and not matching:
            drops = self._drops(batch, texts, TEXT, teaching)
            found["text"] = self.text_encoder.encode_texts(texts, keep=keep.get("text"), drops=drops)
        if fused:
            images = [batch["pixel_values"], *([batch["negative_pixel_values"]] if matching else [])]
            image, *other_image = halves(self.image_states(torch.cat(images)), len(images))
            found["image"] = Encoded(image, nn.Identity())
        if "multimodal_masked" in views:
            masked = PackedIds.of(batch, "input_ids_masked")
            inner, outer = (self._drops(batch, masked, own, teaching) for own in (MASKED, FUSED_MASKED))
            encoded = self.text_encoder.encode_texts(masked, drops=inner).packed
            found["multimodal_masked"] = self.fusion(encoded, image, keep.get("multimodal_masked"), outer)
        if matching:
            others = PackedIds.of(batch, "negative_input_ids", "negative_")
            text, other = (
                self.text_encoder.encode_texts(own, drops=self._drops(batch, own, stream, teaching)).packed
                for own, stream in ((texts, TEXT), (others, NEGATIVE))
            )
            found["text"] = Encoded(text, nn.Identity())
            pairs = joined(text, text, other), joined(image, *other_image, image)
            streams = (texts, OWN), (texts, OTHER_IMAGE), (others, OTHER_TEXT)
            drops = joined_drops([self._drops(batch, *own, teaching) for own in streams])
            found["multimodal"] = self.fusion(*pairs, keep.get("multimodal"), drops)
        return found

    def _drops(self, batch: Batch, texts: PackedIds, stream: int, teaching: bool) -> HiddenDropout | None:
        """Returns what a pass over one text of each sample drops."""
        return hidden_dropout(
            batch,
            self.config.text.hidden_dropout,
            texts.cu_seqlens,
            texts.ids.shape[0],
            stream + TEACHER * teaching,
            on=self.training or teaching,
        )

    def image_states(self, pixel_values: Tensor) -> Packed:
        """Encodes images of any size into all their states: [b c H W] -> [b*(1+n) d]."""
        (encoded,) = self.image_encoder(pixel_values, any_size=True)
        return replace(encoded.packed, hidden=encoded.last_hidden_state())

    def word_table(self) -> Tensor:
        """Returns the word embeddings: [v d]."""
        return self.text_encoder.embeddings.words.weight

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each sequence's first token: [b], or [3b] of "multimodal"."""
        first = batch["cu_seqlens"][:-1].long()
        if view == "image":
            images = torch.arange(batch.size, device=first.device)
            return images * (1 + self.config.image.num_patches)
        if view == "multimodal":
            tokens = batch["input_ids"].shape[0]
            return torch.cat([first, first + tokens, batch["negative_cu_seqlens"][:-1].long() + 2 * tokens])
        return first

    def token_rows(self, view: str, tokens: Tensor, batch: Batch) -> Tensor:
        """Returns the rows of packed tokens in "multimodal_masked", which are the tokens' own: [k] -> [k]."""
        return tokens

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does."""
        parts = {"image": ("image_encoder",), "text": ("text_encoder",)}
        read = parts.get(view, ("image_encoder", "text_encoder", "fusion"))
        return {name for name, _ in self.named_parameters() if name.partition(".")[0] in read}


def joined(*parts: Packed) -> Packed:
    """Lays packed sequences behind each other."""
    bounds, total = [parts[0].cu_seqlens[:1]], 0
    for part in parts:
        bounds.append(part.cu_seqlens[1:] + total)
        total += part.hidden.shape[0]
    hidden = torch.cat([part.hidden for part in parts])
    return Packed(hidden, torch.cat(bounds), max(part.max_seqlen for part in parts))


def halves(images: Packed, parts: int) -> list[Packed]:
    """Cuts packed images, all of one length, into equally many."""
    size = (images.cu_seqlens.shape[0] - 1) // parts
    bounds = images.cu_seqlens[: size + 1]
    return [Packed(hidden, bounds, images.max_seqlen) for hidden in images.hidden.chunk(parts)]


def initialize(module: nn.Module, std: float) -> None:
    """Draws initial weights as BERT does, and the image's CLS and positions with the same deviation.

    The published run starts from DeiT and BERT; its other weights are drawn so, except for the projections,
    which keep torch's default.
    """
    initialize_as_bert(module, std, ("cls_token", "position_embeddings"))
