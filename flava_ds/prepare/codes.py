"""Precomputes image codes: copies shards and adds the codes, so that training needs no image tokenizer."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.config import Config, SourceConfig
from flava_ds.data.transforms import center_pixels
from flava_ds.errors import ConfigError
from flava_ds.prepare.added_members import AddedMember, AddedReport, add_members

CODES_SUFFIX = "codes.npy"
"""Suffix of the members with codes; SourceConfig.image_codes_key must name it."""


def write_codes(
    source: SourceConfig,
    codebook: ImageCodebook,
    config: Config,
    *,
    out: Path | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    on_shard: Callable[[Path, int], None] = lambda shard, samples: None,
) -> AddedReport:
    """Copies every shard of `source` to folder `out`, adding a member KEY.codes.npy per image: uint16 [n].

    The codes are row by row, and those of config.UNCHANGED (shorter side to codebook.image_size, centre
    crop), so use the shards with that transform. An interrupted run continues as in `add_members`.

    Raises: ConfigError for a text source, a vocabulary over 65,536, or a codebook whose grid does not match
    the model's; DataError for unreadable or clashing shards.
    """
    _check(source, codebook, config)
    maker = {"codebook": codebook.fingerprint()}
    codebook = codebook.to(device)
    member = AddedMember(
        what="codes", suffix=CODES_SUFFIX, maker=maker, compute=lambda images: _codes(codebook, images)
    )
    return add_members(source.shards, member, out=out, batch_size=batch_size, on_shard=on_shard)


def _codes(codebook: ImageCodebook, images: list[Tensor]) -> list[bytes]:
    """Encodes decoded images under the unchanging transform: b times [3 H W] uint8 -> b times .npy."""
    pixels = center_pixels(images, codebook.config.image_size)
    codes = codebook.encode(pixels.to(codebook.encoder.input.weight.device)).cpu().numpy().astype(np.uint16)
    return [_saved(row) for row in codes]


def _saved(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, codes, allow_pickle=False)
    return buffer.getvalue()


def _check(source: SourceConfig, codebook: ImageCodebook, config: Config) -> None:
    """Raises an error for settings that cannot give usable codes."""
    if source.kind == "text":
        raise ConfigError(f"'{source.shards}' is a source of kind 'text'; only images have codes")
    if codebook.config.vocab_size > 2**16:
        raise ConfigError(
            f"codebook.vocab_size {codebook.config.vocab_size} does not fit the shards' uint16; use at "
            "most 65536"
        )
    codes = codebook.config.grid_size
    patches: int | None = getattr(getattr(config.model, "image", None), "grid_size", None)
    if patches is None:
        raise ConfigError(
            f"models of the family '{config.model.type}' see no grid of patches, which the codes are for; "
            "give the recipe of one that does"
        )
    if codes != patches:
        raise ConfigError(
            f"the codebook gives {codes} x {codes} codes, but model.image has {patches} x {patches} patches; "
            "change codebook.image_size"
        )
