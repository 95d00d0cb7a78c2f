"""BERT with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.bert.model import Bert
from flava_ds.families.building import seeded, terms
from flava_ds.layers.words import initialize_as_bert
from flava_ds.layers.work import encoder_flops, head_flops
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.objectives.next_sentence import NextSentence
from flava_ds.training.task import Pass, Task, built_objectives


class BertTask(Task):
    """BERT and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(Bert(BertConfig.of(config)), objectives)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        text = BertConfig.of(self.config).text
        tokens, pairs = terms(self, batch, MaskedLanguageModeling), terms(self, batch, NextSentence)
        lengths = batch["cu_seqlens"].diff().tolist()
        yield Pass("text_encoder", encoder_flops(text, lengths, tokens + pairs))
        yield Pass("mlm", tokens * head_flops(text.hidden_size, text.vocab_size))
        yield Pass("nsp", pairs * 2 * text.hidden_size * (text.hidden_size + 2))


def build_task(config: Config) -> BertTask:
    """Builds BERT and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(
        BertTask, config, lambda task: initialize_as_bert(task, BertConfig.of(config).initializer_range)
    )
