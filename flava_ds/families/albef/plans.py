"""Batch contents for ALBEF: pairs, whose own text is also masked."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import corruptions_of, in_use
from flava_ds.data.plan import BatchPlan
from flava_ds.families.albef.config import AlbefConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig, TokenMask


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`; pairs that do not match are made on the device, of the whole step."""
    used, model = in_use(config.objectives).values(), AlbefConfig.of(config)
    tokenizer = model.load_tokenizer(config)
    masked = next((own for own in used if isinstance(own, MultimodalMaskedTextConfig)), None)
    own = corruptions_of(config, source)
    return BatchPlan(
        kind=source.kind,
        views={"pixel_values": model.image_size},
        tokenizer=tokenizer,
        max_tokens=source.max_tokens,
        identities=source.identity_key is not None,
        sample_seeds=model.text.hidden_dropout > 0,
        corruptions=(*([] if masked is None else [TokenMask(masked, tokenizer)]), *own),
    )
