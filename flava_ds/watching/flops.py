"""Arithmetic of one step: closed-form FLOPs of the configuration and the batch's lengths, and the machine's own GEMM rate."""

from __future__ import annotations

import time

import torch

from flava_ds.batch import Batch, Kind
from flava_ds.config import Config

FORWARD_AND_BACKWARD = 3
"""A backward pass costs twice the forward pass."""


def step_flops(config: Config, batch: Batch) -> float:
    """Returns the model FLOPs (2 per multiply-add, forward and backward) of one micro-batch on one rank; the codebook is not counted.

    Reads `cu_seqlens` on the host, so call it before the batch moves. Lookups, norms and losses are left out, as is the extra forward
    pass of activation checkpointing.
    """
    return FORWARD_AND_BACKWARD * forward_flops(config, batch)


def forward_flops(config: Config, batch: Batch) -> float:
    """Returns the FLOPs of the forward pass of one micro-batch."""
    if batch.masked is not None:
        return _clean_flops(config, batch) + _masked_flops(config, batch.masked, embed=True)
    if batch.kind is Kind.PAIR:
        return _clean_flops(config, batch) + _masked_flops(config, batch, embed=False)
    model, rows = config.model, _rows(batch)
    if batch.kind is Kind.IMAGE:
        head = _head_flops(model.image.hidden_size, config.codebook.vocab_size)
        return _patch_flops(config, batch.size) + _encoder_flops(model.image, _image_lengths(config, batch), rows["mim"]) + rows["mim"] * head
    return _encoder_flops(model.text, _text_lengths(batch), rows["mlm"]) + rows["mlm"] * _head_flops(model.text.hidden_size, model.text.vocab_size)


def _clean_flops(config: Config, batch: Batch) -> float:
    """The patches of a pair batch, embedded once for both versions, and the contrastive loss's passes."""
    model, total = config.model, _patch_flops(config, batch.size)
    if config.objectives.global_contrastive.weight > 0:
        total += _encoder_flops(model.image, _image_lengths(config, batch), batch.size) + _encoder_flops(model.text, _text_lengths(batch), batch.size)
        total += 2 * batch.size * model.projection_dim * (model.image.hidden_size + model.text.hidden_size)
    return total


def _masked_flops(config: Config, batch: Batch, *, embed: bool) -> float:
    """The masked and fused passes of a pair batch; `embed` where it is a share whose patches are embedded again."""
    objectives, rows = config.objectives, _rows(batch)
    image, text, fused = config.model.image, config.model.text, config.model.multimodal
    with_image, with_text, with_matching = (part.weight > 0 for part in (objectives.mmm_image, objectives.mmm_text, objectives.itm))
    if not (with_image or with_text or with_matching):
        return 0.0
    images, texts = _image_lengths(config, batch), _text_lengths(batch)
    total = (_patch_flops(config, batch.size) if embed else 0.0) + _encoder_flops(image, images) + _encoder_flops(text, texts)
    total += 2 * fused.hidden_size * (sum(images) * image.hidden_size + sum(texts) * text.hidden_size)
    read = with_image * rows["mim"] + with_text * rows["mlm"] + with_matching * batch.size
    total += _encoder_flops(fused, [1 + a + b for a, b in zip(images, texts, strict=True)], read)
    total += with_image * rows["mim"] * _head_flops(fused.hidden_size, config.codebook.vocab_size)
    total += with_text * rows["mlm"] * _head_flops(fused.hidden_size, text.vocab_size)
    return total + with_matching * batch.size * 2 * fused.hidden_size * (fused.hidden_size + 2)


def _image_lengths(config: Config, batch: Batch) -> list[int]:
    return [1 + config.model.image.num_patches] * batch.size


def _text_lengths(batch: Batch) -> list[int]:
    return batch.cu_seqlens.diff().tolist()


def _rows(batch: Batch) -> dict[str, int]:
    """Masked positions that go through a head."""
    return {name: 0 if rows is None else rows.shape[0] for name, rows in (("mim", batch.mim_rows), ("mlm", batch.mlm_rows))}


def _patch_flops(config: Config, images: int) -> float:
    """The patch embedding."""
    image = config.model.image
    return 2 * images * image.num_patches * image.patch_size**2 * image.num_channels * image.hidden_size


def _encoder_flops(shape, lengths: list[int], read: int | None = None) -> float:
    """A transformer over packed sequences: four projections, two MLP layers, and the two products of attention.

    `read` is the number of rows that somebody reads (None: all); the last block's output projection and MLP run for those alone.
    """
    d, f = shape.hidden_size, shape.intermediate_size
    tokens, pairs = sum(lengths), sum(s * s for s in lengths)
    spared = 0 if read is None else 2 * (tokens - read) * (d * d + 2 * d * f)
    return shape.num_hidden_layers * (2 * tokens * (4 * d * d + 2 * d * f) + 4 * pairs * d) - spared


def _head_flops(hidden_size: int, vocab_size: int) -> float:
    """A masked-prediction head, per row."""
    return 2 * hidden_size * (hidden_size + vocab_size)


def measure_gemm_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """Times square matrix products and returns the best rate in FLOP/s: what this machine can do, against which mfu is given."""
    size = size or (8192 if device.type == "cuda" else 768)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        begun = _now(device)
        a @ b
        best = min(best, _now(device) - begun)
    return 2 * size**3 / best


def _now(device: torch.device) -> float:
    """Seconds, after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
