"""Single streams with their objectives: construction, and the FLOPs of their batches."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.building import rows_read, seeded, terms
from flava_ds.families.single_stream.config import SingleStreamConfig
from flava_ds.layers.words import initialize_as_bert
from flava_ds.layers.work import encoder_flops, head_flops
from flava_ds.objectives.itm import ImageTextMatching
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.objectives.next_sentence import NextSentence
from flava_ds.training.task import Pass, Task, built_objectives


class SingleStreamTask(Task):
    """A model over words and regions, and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(network_of(config)(config.model), objectives)
        self.config = config

    def users(self) -> dict[str, frozenset[str]]:
        """As for every task, without steps whose samples lack what a parameter reads."""
        found = super().users()
        for name in found:
            if name.startswith("model."):
                found[name] &= self.model.kinds_of(name.removeprefix("model."))
        return found

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model, read = SingleStreamConfig.of(self.config), rows_read(self, batch)
        layers = (part for part in self.model.regions.modules() if isinstance(part, nn.Linear))
        regions = batch["region_boxes"].shape[0] if "region_boxes" in batch else 0
        each = 2 * regions * sum(layer.weight.numel() for layer in layers)
        embedded = {model.readings[view].hides_regions for view in read}
        yield Pass("region_embedding", each * len(embedded))
        for view, rows in read.items():
            lengths = self.model.layout(view, batch).cu_seqlens.diff().tolist()
            yield Pass(view, encoder_flops(model.text, lengths, rows))
        masked = terms(self, batch, MaskedLanguageModeling)
        matched = terms(self, batch, ImageTextMatching, NextSentence)
        width = model.text.hidden_size
        yield Pass("mmm_text", masked * head_flops(width, model.text.vocab_size))
        yield Pass("itm", matched * 2 * width * (width + 2))


def network_of(config: Config) -> Any:
    """Returns the class of a configuration's model."""
    module, _, name = SingleStreamConfig.of(config).network.partition(":")
    return getattr(importlib.import_module(module), name)


def build_task(config: Config) -> SingleStreamTask:
    """Builds a model and its objectives, initialised from config.seed, whatever the global generator."""

    def initialize(task: SingleStreamTask) -> None:
        initialize_as_bert(task, SingleStreamConfig.of(config).initializer_range)
        task.model.initialize()

    return seeded(SingleStreamTask, config, initialize)
