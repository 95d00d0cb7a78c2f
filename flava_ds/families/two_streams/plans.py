"""Batch contents for LXMERT and ViLBERT: masked words and regions of pairs, some of which do not match."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import corruptions_of, in_use
from flava_ds.data.plan import BatchPlan, RegionsPlan
from flava_ds.families.two_streams.config import TwoStreamConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig, TokenMask


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`.

    All objectives read one pass, as published: a text that does not match is masked and predicted, too. The
    mask is drawn with the settings of the masked objective, or its defaults if a run omits it.
    """
    used, tokenizer = in_use(config.objectives).values(), TwoStreamConfig.of(config).load_tokenizer(config)
    told = [own for own in config.objectives.values() if isinstance(own, MultimodalMaskedTextConfig)]
    mask = (told or [MultimodalMaskedTextConfig()])[0]
    matching = next((own for own in used if isinstance(own, ImageTextMatchingConfig)), None)
    own = corruptions_of(config, source)
    return BatchPlan(
        kind=source.kind,
        regions=RegionsPlan.of(config, source),
        tokenizer=tokenizer,
        max_tokens=source.max_tokens,
        sample_seeds=TwoStreamConfig.of(config).text.hidden_dropout > 0,
        mismatch_probability=0.0 if matching is None else matching.mismatch_probability,
        corruptions=tuple(dict.fromkeys([TokenMask(mask, tokenizer, mismatched_too=True), *own])),
    )
