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
    model, objectives = config.model, config.objectives
    image, text, fused = model.image, model.text, model.multimodal
    rows = _rows(batch)
    images = [1 + image.num_patches] * batch.size
    texts = batch.cu_seqlens.diff().tolist() if batch.cu_seqlens is not None else []
    mim_head = _head_flops(image.hidden_size, config.codebook.vocab_size)
    text_head = _head_flops(text.hidden_size, text.vocab_size)
    if batch.kind is Kind.IMAGE:
        return _patch_flops(config, batch.size) + _encoder_flops(image, images, rows["mim"]) + rows["mim"] * mim_head
    if batch.kind is Kind.TEXT:
        return _encoder_flops(text, texts, rows["mlm"]) + rows["mlm"] * text_head
    total = _patch_flops(config, batch.size)  # once for the clean and the masked version
    if objectives.global_contrastive.weight > 0:
        total += _encoder_flops(image, images, batch.size) + _encoder_flops(text, texts, batch.size)
        total += 2 * batch.size * model.projection_dim * (image.hidden_size + text.hidden_size)
    fused_wanted = objectives.mmm_image.weight > 0 or objectives.mmm_text.weight > 0 or objectives.itm.weight > 0
    if fused_wanted:
        total += _encoder_flops(image, images) + _encoder_flops(text, texts)
        total += 2 * fused.hidden_size * (sum(images) * image.hidden_size + sum(texts) * text.hidden_size)
        read = (objectives.mmm_image.weight > 0) * rows["mim"] + (objectives.mmm_text.weight > 0) * rows["mlm"] + (objectives.itm.weight > 0) * batch.size
        total += _encoder_flops(fused, [1 + a + b for a, b in zip(images, texts, strict=True)], read)
    total += (objectives.mmm_image.weight > 0) * rows["mim"] * _head_flops(fused.hidden_size, config.codebook.vocab_size)
    total += (objectives.mmm_text.weight > 0) * rows["mlm"] * _head_flops(fused.hidden_size, text.vocab_size)
    total += (objectives.itm.weight > 0) * batch.size * 2 * fused.hidden_size * (fused.hidden_size + 2)
    return total


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
