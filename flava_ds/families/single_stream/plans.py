"""Batch contents for single streams: regions and a masked text, and a second text where it is matched."""

from __future__ import annotations

from dataclasses import replace

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import corruptions_of, in_use
from flava_ds.data.plan import BatchPlan, Corruption, RegionsPlan
from flava_ds.families.single_stream.config import SingleStreamConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig, TokenMask
from flava_ds.objectives.next_sentence import (
    CaptionPairs,
    SentenceImageConfig,
    SentencePairs,
    TaggedCaptions,
    TokenTypes,
)
from flava_ds.objectives.tag_contrast import TagContrastConfig
from flava_ds.objectives.word_patch_alignment import second_texts


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`; a pair that does not match is made by another text."""
    used, model = in_use(config.objectives).values(), SingleStreamConfig.of(config)
    tokenizer = model.load_tokenizer(config)
    masked = next((own for own in used if isinstance(own, MultimodalMaskedTextConfig)), None)
    mismatched = second_texts(config.objectives)
    pairs = next((own for own in used if isinstance(own, SentenceImageConfig)), None)
    contrast = next((own for own in used if isinstance(own, TagContrastConfig)), None)
    wrong_caption = mismatched or 0.0
    composer: SentencePairs | None = None
    if pairs is not None:
        wrong_caption, composer = pairs.random_probability, CaptionPairs(tokenizer)
    elif model.reads_tags:
        wrong_caption = contrast.wrong_caption_probability if contrast is not None else 0.0
        composer = TaggedCaptions(tokenizer)
    if pairs is not None or contrast is not None:  # these read the masked text, too
        masked = masked or MultimodalMaskedTextConfig()
    mask: list[Corruption] = [] if masked is None else [TokenMask(masked, tokenizer, mismatched_too=True)]
    mask += [TokenTypes(tokenizer.sep_id)] * model.reads_tags
    common = BatchPlan(
        kind=source.kind,
        tokenizer=tokenizer,
        max_tokens=source.max_tokens,
        sample_seeds=model.text.hidden_dropout > 0,
        corruptions=tuple(dict.fromkeys([*mask, *corruptions_of(config, source)])),
    )
    if source.kind == "text":
        return common
    return replace(
        common,
        regions=RegionsPlan.of(config, source),
        mismatch_probability=wrong_caption,
        wrong_tags_probability=contrast.wrong_tags_probability if contrast is not None else 0.0,
        matches_apart=mismatched is not None,
        composer=composer,
    )
