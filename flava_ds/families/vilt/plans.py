"""Batch contents for ViLT: pairs whose own text is masked, and a second text of each to be matched."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import corruptions_of, in_use
from flava_ds.data.plan import BatchPlan
from flava_ds.families.vilt.config import ViltConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig, TokenMask
from flava_ds.objectives.word_patch_alignment import second_texts


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`.

    A pair that does not match is made by another text; the published code takes another image.
    """
    used, model = in_use(config.objectives).values(), ViltConfig.of(config)
    tokenizer = model.load_tokenizer(config)
    masked = next((own for own in used if isinstance(own, MultimodalMaskedTextConfig)), None)
    mismatched = second_texts(config.objectives)
    mask = [] if masked is None else [TokenMask(masked, tokenizer, mismatched_too=True)]
    return BatchPlan(
        kind=source.kind,
        views={"pixel_values": model.image_size},
        tokenizer=tokenizer,
        max_tokens=source.max_tokens,
        mismatch_probability=mismatched or 0.0,
        matches_apart=mismatched is not None,
        sample_seeds=model.image.hidden_dropout > 0,
        corruptions=tuple(dict.fromkeys([*mask, *corruptions_of(config, source)])),
    )
