"""BERT with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.bert.config import bert_of
from flava_ds.families.bert.model import Bert
from flava_ds.layers.words import initialize_as_bert
from flava_ds.layers.work import encoder_flops, head_flops
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.objectives.next_sentence import NextSentence
from flava_ds.training.task import Pass, Task, built_objectives, recompute_activations


class BertTask(Task):
    """BERT and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(Bert(bert_of(config)), objectives)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        """Lists a batch's work, without lookups, norms and losses."""
        text, active = bert_of(self.config).text, self.active(batch.kind).values()
        tokens, pairs = (
            sum(own.count(batch) for own in active if isinstance(own, kind))
            for kind in (MaskedLanguageModeling, NextSentence)
        )
        lengths = batch["cu_seqlens"].diff().tolist()
        yield Pass("text_encoder", encoder_flops(text, lengths, tokens + pairs))
        yield Pass("mlm", tokens * head_flops(text.hidden_size, text.vocab_size))
        yield Pass("nsp", pairs * 2 * text.hidden_size * (text.hidden_size + 2))


def build_task(config: Config) -> BertTask:
    """Builds BERT and its objectives, initialised from config.seed, independent of the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = BertTask(config)
        initialize_as_bert(task, bert_of(config).initializer_range)
    recompute_activations(task, config.training)
    return task
