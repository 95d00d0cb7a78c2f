"""Batch contents for single streams: regions and a masked text, and a second text where it is matched."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import in_use
from flava_ds.data.plan import BatchPlan, RegionsPlan
from flava_ds.families.single_stream.config import single_stream_of
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig, TokenMask
from flava_ds.objectives.next_sentence import CaptionPairs, SentenceImageConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig

MATCHING = (ImageTextMatchingConfig, WordPatchAlignmentConfig)
"""Objectives that read the second text."""


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`.

    A pair that does not match is made by another text. Shares are those of the matching objective, or its
    defaults if a run omits it.
    """
    used, model = in_use(config.objectives).values(), single_stream_of(config)
    tokenizer = model.load_tokenizer(config)
    masked = next((own for own in used if isinstance(own, MultimodalMaskedTextConfig)), None)
    apart = any(isinstance(own, MATCHING) for own in used)
    told = [own for own in config.objectives.values() if isinstance(own, ImageTextMatchingConfig)]
    matching = (told or [ImageTextMatchingConfig()])[0]
    pairs = next((own for own in used if isinstance(own, SentenceImageConfig)), None)
    if pairs is not None:  # it reads the masked text, too
        masked = masked or MultimodalMaskedTextConfig()
    mask = [] if masked is None else [TokenMask(masked, tokenizer, mismatched_too=True)]
    own = [corruption for objective in used for corruption in objective.corruptions(config, source)]
    return BatchPlan(
        kind=source.kind,
        regions=RegionsPlan.of(config, source),
        tokenizer=tokenizer,
        max_tokens=source.max_tokens,
        mismatch_probability=matching.mismatch_probability * apart
        if pairs is None
        else pairs.random_probability,
        matches_apart=apart,
        composer=None if pairs is None else CaptionPairs(tokenizer),
        corruptions=tuple(dict.fromkeys([*mask, *own])),
    )
