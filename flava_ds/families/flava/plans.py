"""Batch contents per FLAVA kind: images, texts, and the objectives' masks, labels and mismatches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import ObjectiveConfig, corruptions_of, in_use
from flava_ds.data.plan import BatchPlan, Corruption, Crops
from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import (
    CodebookTargets,
    MaskedImageConfig,
    MultimodalMaskedImageConfig,
    PatchMask,
)
from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig, TokenMask

MASKS = {
    Kind.PAIR: (MultimodalMaskedImageConfig, MultimodalMaskedTextConfig),
    Kind.IMAGE: (MaskedImageConfig, None),
    Kind.TEXT: (None, MaskedTextConfig),
}
"""The objectives whose masks the masked views of each kind use."""
READ_MASKED = (MaskedImageConfig, MaskedTextConfig, ImageTextMatchingConfig)
"""Objectives, including their variants, that read a masked view."""


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`.

    The fused pass of a pair reads a masked image and a masked text whenever one of its objectives (MMM, ITM)
    is active. Both masks are drawn then, with the settings of the MMM objectives, or their defaults if a run
    omits one.

    Raises: ConfigError if the vocabulary is larger than the embedding table.
    """
    kind, used = Kind(source.kind), in_use(config.objectives)
    active = [own for own in used.values() if kind in own.kinds]
    masked = [own for own in active if isinstance(own, READ_MASKED)]
    image_mask, text_mask = (_mask_of(config, variant, bool(masked)) for variant in MASKS[kind])
    matching = next((o for o in masked if isinstance(o, ImageTextMatchingConfig)), None)
    predicted = any(isinstance(objective, MaskedImageConfig) for objective in masked)
    model = FlavaConfig.of(config)
    views: dict[str, int] = {}
    corruptions: list[Corruption] = []
    crops = {} if kind == Kind.TEXT else crops_of(active, config, source)
    if kind != Kind.TEXT and (source.kind == "pair" or any(own.reads_image for own in active)):
        views, targets = _pictures(config, source, predicted)
        if image_mask is not None:
            corruptions += [*targets, PatchMask(model.image.grid_size, image_mask)]
    tokenizer = model.load_tokenizer(config) if kind != Kind.IMAGE else None
    if text_mask is not None:
        assert tokenizer is not None  # only kinds with text have a text mask
        corruptions.append(TokenMask(text_mask, tokenizer))
    corruptions += corruptions_of(config, source)
    return BatchPlan(
        kind=kind,
        views=views,
        crops=crops,
        tokenizer=tokenizer,
        max_tokens=0 if tokenizer is None else source.max_tokens,
        mismatch_probability=0.0 if matching is None else matching.mismatch_probability,
        masked_share=source.masked_share if kind == Kind.PAIR and masked else 1.0,
        corruptions=tuple(corruptions),
        stored_codes=model.image.num_patches if kind != Kind.TEXT and source.image_codes_key else 0,
        pad_to_multiple_of=config.training.pad_to_multiple_of,
    )


def crops_of(active: Sequence[ObjectiveConfig], config: Config, source: SourceConfig) -> dict[str, Crops]:
    """Returns the crops that objectives ask for.

    Raises: ConfigError when two ask for different ones under one name.
    """
    found: dict[str, Crops] = {}
    for objective in active:
        for name, crops in objective.crops(config, source).items():
            if found.setdefault(name, crops) != crops:
                raise ConfigError(
                    f"objectives: two ask for different crops '{name}'; give both the same settings of their "
                    "crops, or leave one out"
                )
    return found


def _mask_of(config: Config, variant: type[Any] | None, wanted: bool) -> Any:
    """Returns the mask settings of one side of a kind; None if it is not masked."""
    if variant is None or not wanted:
        return None
    return next((own for own in config.objectives.values() if type(own) is variant), variant())


def _pictures(
    config: Config, source: SourceConfig, predicted: bool
) -> tuple[dict[str, int], list[Corruption]]:
    """Returns the image views, and the corruption that passes on the targets of masked patches."""
    size, codebook_size = FlavaConfig.of(config).image.image_size, config.codebook.image_size
    views = {"pixel_values": size}
    if source.image_codes_key:
        return views, [CodebookTargets(None)]
    if not predicted:
        return views, []
    if size == codebook_size:
        return views, [CodebookTargets("pixel_values")]
    return {**views, "codebook_pixel_values": codebook_size}, [CodebookTargets("codebook_pixel_values")]
