"""Batch contents for BERT: masked texts, of two segments if the next sentence is predicted."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import corruptions_of, in_use
from flava_ds.data.plan import BatchPlan
from flava_ds.families.bert.config import BertConfig
from flava_ds.objectives.masked_text import MaskedTextConfig, TokenMask
from flava_ds.objectives.next_sentence import NextSentenceConfig, SentencePairs


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`.

    Both objectives read the masked text. The mask is drawn with the settings of the masked objective, or its
    defaults if a run omits it; other texts' segments are predicted too, as published.
    """
    used, tokenizer = in_use(config.objectives).values(), BertConfig.of(config).load_tokenizer(config)
    mask = next((own for own in config.objectives.values() if type(own) is MaskedTextConfig), None)
    pairs = next((own for own in used if isinstance(own, NextSentenceConfig)), None)
    own = corruptions_of(config, source)
    return BatchPlan(
        kind=source.kind,
        tokenizer=tokenizer,
        max_tokens=source.max_tokens,
        mismatch_probability=0.0 if pairs is None else pairs.random_probability,
        sample_seeds=BertConfig.of(config).text.hidden_dropout > 0,
        composer=None if pairs is None else SentencePairs(tokenizer),
        corruptions=(TokenMask(mask or MaskedTextConfig(), tokenizer, mismatched_too=True), *own),
    )
