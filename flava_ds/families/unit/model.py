"""UniT: an encoder of images, a BERT, and a decoder whose queries stand for a task's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Batch, Packed
from flava_ds.families.bert.model import BertEncoder
from flava_ds.families.unit.config import TASKS, UnitConfig
from flava_ds.layers.fused import LayerNorm
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout
from flava_ds.layers.pairs import SequenceLayout, prefixed
from flava_ds.layers.positioned import Positioned, PositionedTransformer, sine_positions
from flava_ds.layers.resnet import ResNetStages, initialize_as_resnet
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import PackedIds, initialize_as_bert

OF_IMAGES = ("image_tower.", "projection.", "encoder.", "image_memory.", "image_positions.")
"""Beginnings of the names of parameters that only images need."""
_OF_TEXTS = ("text_encoder.", "text_memory.", "text_positions.")
_OF_TASKS = ("image_tasks.", "text_tasks.", "queries.")
"""Tables with a row for each task."""
_OF_CELLS, _OF_WORDS, _OF_TEXTS_WITH_TOKENS, _OF_QUERIES = range(4)
"""Numbers of what is dropped apart."""
Drop = Callable[[float, Tensor, int, int], HiddenDropout | None]
"""From a probability, the bounds of packed sequences, their rows in all, and a number of the above."""


def nothing(probability: float, cu_seqlens: Tensor, total: int, stream: int) -> None:
    """Drops nothing: evaluations and fine-tuning."""


class Unit(nn.Module):
    """Encodes batches of each task; a task's view has the outputs of all layers of the decoder.

    Rows of a view: first layer first, in it sample by sample, in a sample query by query. The final LayerNorm
    is the same for all layers.
    """

    def __init__(self, config: UnitConfig, queries: Mapping[str, int]):
        """`queries` are the number of queries of each task in use."""
        super().__init__()
        encoder, text, decoder = config.encoder, config.text, config.decoder
        self.config, self.counts = config, dict(queries)
        self.image_tower = ResNetStages(config.image)
        self.projection = nn.Linear(self.image_tower.channels, encoder.hidden_size)
        self.encoder = PositionedTransformer(encoder)
        self.image_memory = nn.Linear(encoder.hidden_size, decoder.hidden_size)
        self.image_positions = nn.Linear(encoder.hidden_size, decoder.hidden_size)
        self.text_encoder = BertEncoder(text)
        self.text_memory = nn.Linear(text.hidden_size, decoder.hidden_size)
        self.text_positions = nn.Linear(text.hidden_size, decoder.hidden_size)
        self.decoder = PositionedTransformer(decoder, crosses=True)
        self.decoder_norm = LayerNorm(decoder.hidden_size, eps=decoder.layer_norm_eps)
        seen = {task: TASKS[task] for task in queries}
        images, texts = ([task for task in seen if seen[task] != other] for other in ("text", "image"))
        self.image_tasks = _tables(dict.fromkeys(images, 1), encoder.hidden_size)
        self.text_tasks = _tables(dict.fromkeys(texts, 1), text.hidden_size)
        self.queries = _tables(queries, decoder.hidden_size)

    def encode(
        self, batch: Batch, views: Collection[str], reads: Mapping[str, Tensor] | None = None
    ) -> dict[str, Encoded]:
        """Encodes a batch for each of `views`, the tasks: all rows of them."""
        found: dict[str, Encoded] = {}
        drop = partial(hidden_dropout, batch, on=self.training)
        for task in views:
            pixels, texts = None, None
            if TASKS[task] != "text":
                pixels = batch["pixel_values"]
            if TASKS[task] != "image":
                texts = PackedIds.of(batch)
            found[task] = self.answer(task, pixels, texts, batch.get("token_types"), drop)
        return found

    def answer(
        self,
        task: str,
        pixel_values: Tensor | None = None,
        texts: PackedIds | None = None,
        token_types: Tensor | None = None,
        drop: Drop = nothing,
    ) -> Encoded:
        """Decodes a task's queries beside images, texts, or both. `drop` says what training drops.

        Shapes:
            pixel_values  [b 3 H W]  uint8 in [0, 255], or floats that are already normalised
            token_types   [T]        segments of the texts; None for one segment
            returns       Encoded of [L*b*Q d]
        """
        seen = None if texts is None else self.read_texts(task, texts, token_types, drop)
        if pixel_values is not None:
            image = self.read_images(task, pixel_values, drop)
            seen = image if seen is None else _joined(image, seen)
        if seen is None:
            raise ValueError("a task needs images, texts, or both")
        queries = self.queries[task]()
        count, size = queries.shape[0], seen.packed.cu_seqlens.shape[0] - 1
        positions = repeat(queries, "q d -> (b q) d", b=size)
        bounds = count * torch.arange(size + 1, device=queries.device, dtype=torch.int32)
        asked = Positioned(Packed(torch.zeros_like(positions), bounds, count), positions)
        drops = drop(self.config.decoder.hidden_dropout, bounds, positions.shape[0], _OF_QUERIES)
        return Encoded(Packed(self.decoder(asked, seen, drops), bounds, count), self.decoder_norm)

    def read_images(self, task: str, pixel_values: Tensor, drop: Drop = nothing) -> Positioned:
        """Encodes images for a task: one row for each cell of the grid, [b*n d]."""
        grid = self.image_tower(pixel_values)
        cells = self.projection(rearrange(grid, "b c h w -> b (h w) c"))
        size, length = cells.shape[:2]
        height, width = grid.shape[-2:]
        sines = sine_positions((height, width), cells.shape[-1], cells.device).to(cells.dtype)
        token = repeat(self.image_tasks[task]().to(cells.dtype), "one d -> b one d", b=size)
        packed = _equal(torch.cat([token, cells], dim=1))
        places = repeat(F.pad(sines, (0, 0, 1, 0)), "n d -> (b n) d", b=size)
        dropped = self.config.encoder.hidden_dropout, packed.cu_seqlens, places.shape[0]
        found = self.encoder(Positioned(packed, places), drops=drop(*dropped, _OF_CELLS))
        memory = rearrange(found, "(b n) d -> b n d", b=size)[:, 1:] + cells
        positions = repeat(self.image_positions(sines), "n d -> (b n) d", b=size)
        return Positioned(_equal(self.image_memory(memory)), positions)

    def read_texts(
        self, task: str, texts: PackedIds, token_types: Tensor | None = None, drop: Drop = nothing
    ) -> Positioned:
        """Encodes texts for a task: a row for each token, [T d], or for each CLS, [b d]."""
        embeddings, size = self.text_encoder.embeddings, texts.cu_seqlens.shape[0] - 1
        probability, total = self.config.text.hidden_dropout, texts.ids.shape[0]
        of_words = drop(probability, texts.cu_seqlens, total, _OF_WORDS)
        words = embeddings(texts, token_types, of_words)
        layout = SequenceLayout(1, texts.cu_seqlens, texts.max_seqlen, own=0)
        token = repeat(self.text_tasks[task]().to(words.dtype), "one d -> b one d", b=size)
        packed = prefixed(token, texts.packed(words))
        _, place = places(texts.cu_seqlens, texts.ids.shape[0])
        bounds, longest = texts.cu_seqlens, texts.max_seqlen
        if task in self.config.first_word_only:
            rows, longest = layout.text_starts, 1
            bounds = torch.arange(size + 1, device=rows.device, dtype=torch.int32)
            place = torch.zeros_like(rows)
        else:
            rows = layout.text_rows(torch.arange(texts.ids.shape[0], device=words.device))
        drops = drop(probability, packed.cu_seqlens, total + size, _OF_TEXTS_WITH_TOKENS)
        hidden = self.text_memory(self.text_encoder.transformer(packed, rows=rows, drops=drops))
        positions = self.text_positions(embeddings.positions(place))
        return Positioned(Packed(hidden, bounds, longest), positions)

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each sample's first query, of the last layer: [b]."""
        return self.last_rows(view, batch.size, self.decoder_norm.weight.device)

    def last_rows(self, task: str, size: int, device: torch.device) -> Tensor:
        """Returns the row of each of `size` samples' first query, of the last layer: [b]."""
        count, before = self.counts[task], self.config.decoder.num_hidden_layers - 1
        return count * (before * size + torch.arange(size, device=device))

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does: the decoder, the encoders
        of what the task's samples have, and the task's own.
        """
        content = TASKS[view]
        other = _OF_TEXTS * (content == "image") + OF_IMAGES * (content == "text") + _OF_TASKS
        own = {f"{table}{view}.weight" for table in _OF_TASKS}
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name in own or not name.startswith(other)}


class Table(nn.Embedding):
    """Learned rows, all of which are read: [n d]."""

    def forward(self) -> Tensor:  # type: ignore[override]  # it takes no indices
        return self.weight * 1  # the weight itself is gathered under ZeRO-3 only while this runs


def _tables(rows: Mapping[str, int], width: int) -> nn.ModuleDict:
    """Returns a table for each task."""
    return nn.ModuleDict({task: Table(count, width) for task, count in rows.items()})


def _equal(rows: Tensor) -> Packed:
    """Packs sequences of equal length: [b n d] -> [b*n d]."""
    size, length = rows.shape[:2]
    bounds = length * torch.arange(size + 1, device=rows.device, dtype=torch.int32)
    return Packed(rearrange(rows, "b n d -> (b n) d"), bounds, length)


def _joined(image: Positioned, text: Positioned) -> Positioned:
    """Puts the cells of each image before the rows of its text."""

    def both(cells: Tensor, rows: Tensor) -> Packed:
        packed = Packed(rows, text.packed.cu_seqlens, text.packed.max_seqlen)
        return prefixed(rearrange(cells, "(b n) d -> b n d", n=image.packed.max_seqlen), packed)

    packed = both(image.packed.hidden, text.packed.hidden)
    return Positioned(packed, both(image.positions, text.positions).hidden)


@torch.no_grad()
def initialize(model: Unit) -> None:
    """Draws BERT as BERT does, the tower as torchvision does, the transformers as DETR does.

    Source: Carion et al. 2020, the code: Xavier's uniform distribution; torch's own for the others.
    """
    for part in (model.encoder, model.decoder, model.image_memory, model.image_positions):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    initialize_as_bert(model.text_encoder, model.config.initializer_range)
    initialize_as_resnet(model.image_tower)
