"""LXMERT and ViLBERT with their objectives: construction, and the FLOPs of their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.building import rows_read, seeded, terms
from flava_ds.families.two_streams.config import (
    LxmertConfig,
    TwoStreamConfig,
    VilbertConfig,
)
from flava_ds.families.two_streams.model import Lxmert, TwoStreamModel, Vilbert
from flava_ds.layers.words import initialize_as_bert
from flava_ds.layers.work import cross_attention_flops, encoder_flops, head_flops
from flava_ds.objectives.itm import ImageTextMatching
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.training.task import Pass, Task, built_objectives


class TwoStreamTask(Task):
    """A model of two streams and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(build_model(TwoStreamConfig.of(config)), objectives)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model, read = TwoStreamConfig.of(self.config), rows_read(self, batch)
        lengths = [batch[f"{prefix}cu_seqlens"].diff().tolist() for prefix in ("", "region_")]
        text, image = model.stream_shapes
        inputs = self.model.region_embeddings.boxes.in_features + model.image.feature_size
        yield Pass("region_embeddings", 2 * sum(lengths[1]) * inputs * image.hidden_size)
        for number, view in enumerate(model.views if read else ()):
            yield Pass(view, stream_flops(model, number, lengths, read.get(view)))
        masked, matched = terms(self, batch, MaskedLanguageModeling), terms(self, batch, ImageTextMatching)
        yield Pass("mmm_text", masked * head_flops(text.hidden_size, model.text.vocab_size))
        pooled = sum(model.shape_of(view).hidden_size for view in model.pooled_views)
        yield Pass("itm", matched * 2 * model.pooled_size * (pooled + 2))


def stream_flops(model: TwoStreamConfig, number: int, lengths: list[list[int]], read: int | None) -> float:
    """Counts a stream, 0 the words' and 1 the regions', of sequences of `lengths`, words first.

    `read` is the number of rows that are read; None if none are, which spares its part of the last round.
    """
    own, other = model.stream_shapes[number], model.stream_shapes[1 - number]
    rounds = model.rounds - (read is None)
    layers = dataclasses.replace(own, num_hidden_layers=own.num_hidden_layers + rounds)
    flops = encoder_flops(layers, lengths[number], read)
    width = None
    if isinstance(model, VilbertConfig):
        width = model.co_attention_size
        flops += 4 * rounds * sum(lengths[number]) * own.hidden_size * own.intermediate_size
    return flops + cross_attention_flops(
        own,
        lengths[number],
        lengths[1 - number],
        layers=rounds,
        memory_size=other.hidden_size,
        width=width,
    )


def build_model(config: TwoStreamConfig) -> TwoStreamModel:
    """Builds the model of either family."""
    if isinstance(config, VilbertConfig):
        return Vilbert(config)
    assert isinstance(config, LxmertConfig)
    return Lxmert(config)


def build_task(config: Config) -> TwoStreamTask:
    """Builds model and objectives, initialised from config.seed, independent of the global generator."""
    std = TwoStreamConfig.of(config).initializer_range
    return seeded(TwoStreamTask, config, lambda task: initialize_as_bert(task, std))
