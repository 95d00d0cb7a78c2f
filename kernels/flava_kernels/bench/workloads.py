"""The benchmark's workloads: FLAVA's shapes, with the minimum bytes and operations of each operator.

On a GPU: one micro-batch of 256 samples of flava_base (images of 197 tokens, fused sequences of 275 or, with
short captions, about 215). On a CPU: the same layers with fewer rows, and the two heads at sizes where memory
matters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import attention
from flava_kernels.bench.workload import Cost, Workload, randn

SIZES = ("gpu", "cpu", "quick")


def workloads(op: str, size: str) -> tuple[Workload, ...]:
    """Returns an operator's workloads of one of SIZES, possibly none."""
    if op not in SHAPES:
        return ()
    family, rows = SHAPES[op]
    return tuple(family(op, *shape) for shape in rows[size])


def _layer_norm(op: str, rows: int, width: int) -> Workload:
    """Rows of a residual stream, or of a branch and its stream, whose sum no dtype rounds."""
    residual = op == "add_layer_norm"

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        weight, bias = (
            1 + 0.1 * randn(generator, torch.float32, width),
            0.1 * randn(generator, torch.float32, width),
        )
        names = ("x", "residual") if residual else ("x",)
        streams = {name: randn(generator, dtype, rows, width) for name in names}
        if residual:
            streams = {name: stream.mul_(4).round_().div_(4) for name, stream in streams.items()}
        return streams | {"weight": weight, "bias": bias, "eps": 1e-12}

    def cost(element: int) -> Cost:
        stream = rows * width * element
        return Cost(
            (4 if residual else 2) * stream,
            8 * rows * width,
            (4 if residual else 3) * stream,
            12 * rows * width,
        )

    leaves = ("x", "residual", "weight", "bias") if residual else ("x", "weight", "bias")
    return Workload(op, f"{rows}x{width}", draw, leaves, cost)


def _dropout(op: str, rows: int, width: int) -> Workload:
    """Rows of a branch, each with its key."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        keys = torch.randint(2**62, (rows,), generator=generator, device=generator.device)
        return {"x": randn(generator, dtype, rows, width), "keys": keys, "stream": 5, "p": 0.1}

    def cost(element: int) -> Cost:
        moved, scaled = 2 * rows * width * element + 8 * rows, rows * width
        return Cost(moved, scaled, moved, scaled)

    return Workload(op, f"{rows}x{width}", draw, ("x",), cost)


def _linear_gelu(op: str, rows: int, width: int, inner: int) -> Workload:
    """First half of an MLP."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        weight, bias = (
            randn(generator, torch.float32, inner, width) / math.sqrt(width),
            0.1 * randn(generator, torch.float32, inner),
        )
        return {
            "hidden": randn(generator, dtype, rows, width),
            "weight": weight.to(dtype),
            "bias": bias.to(dtype),
        }

    def cost(element: int) -> Cost:
        operands, result, product = (
            (rows + inner) * width * element,
            rows * inner * element,
            2 * rows * inner * width,
        )
        return Cost(operands + 2 * result, product, 2 * operands + 2 * result, 2 * product)

    return Workload(op, f"{rows}x{width}->{inner}", draw, ("hidden", "weight", "bias"), cost)


def _gelu_linear(op: str, rows: int, inner: int, width: int) -> Workload:
    """Second half of an MLP whose first one gives z."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        weight = randn(generator, torch.float32, width, inner) / math.sqrt(inner)
        return {
            "z": randn(generator, dtype, rows, inner),
            "weight": weight.to(dtype),
            "bias": 0.1 * randn(generator, dtype, width),
        }

    def cost(element: int) -> Cost:
        given, operands = rows * inner * element, (rows + inner) * width * element
        product = 2 * rows * inner * width
        return Cost(given + operands, product, 2 * given + operands + width * inner * element, 2 * product)

    return Workload(op, f"{rows}x{inner}->{width}", draw, ("z", "weight", "bias"), cost)


def _lengths(batch: int, least: int, most: int) -> Tensor:
    """Returns fixed sequence lengths; the last is the longest."""
    drawn = torch.randint(least, most + 1, (batch,), generator=torch.Generator().manual_seed(0))
    return torch.cat([drawn[:-1], torch.tensor([most])])


def _cu_seqlens(lengths: Tensor, device: torch.device) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(device)


def _packing(op: str, batch: int, least: int, most: int, width: int) -> Workload:
    """Captions from and to the padded layout."""
    lengths = _lengths(batch, least, most)
    tokens = int(lengths.sum())

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        cu_seqlens = _cu_seqlens(lengths, generator.device)
        if op == "pack":
            return {
                "padded": randn(generator, dtype, batch, most, width),
                "cu_seqlens": cu_seqlens,
                "total": tokens,
            }
        return {
            "packed": randn(generator, dtype, tokens, width),
            "cu_seqlens": cu_seqlens,
            "max_seqlen": most,
        }

    def cost(element: int) -> Cost:
        packed, padded = (tokens + rows for rows in (tokens, batch * most))
        forward, backward = (packed, padded) if op == "pack" else (padded, packed)
        return Cost(forward * width * element, 0, backward * width * element, 0)

    return Workload(
        op, f"{batch}x{least}..{most} d{width}", draw, ("padded" if op == "pack" else "packed",), cost
    )


def _fuse(op: str, batch: int, image_length: int, least: int, most: int, width: int) -> Workload:
    """Image tokens and captions to the fused encoder's sequences."""
    lengths = _lengths(batch, least, most)
    tokens = int(lengths.sum())

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        rows = {"image": batch * image_length, "text": tokens}
        streams = {"cls_token": randn(generator, dtype, width)} | {
            name: randn(generator, dtype, count, width) for name, count in rows.items()
        }
        return streams | {"text_cu_seqlens": _cu_seqlens(lengths, generator.device), "text_max_seqlen": most}

    def cost(element: int) -> Cost:
        moved = 2 * (batch * (1 + image_length) + tokens) * width * element
        return Cost(moved, 0, moved, 0)

    return Workload(
        op, f"{batch}x(1+{image_length}+{least}..{most}) d{width}", draw, ("cls_token", "image", "text"), cost
    )


def _attention(
    op: str, batch: int, most: int, heads: int, head_size: int, least: int, causal: bool = False
) -> Workload:
    """`batch` sequences of `least` to `most` tokens."""
    lengths = _lengths(batch, least, most)
    tokens, pairs = int(lengths.sum()), sum(attention.pairs(length, causal) for length in lengths.tolist())

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        qkv = randn(generator, dtype, tokens, 3, heads, head_size)
        layout = {
            "cu_seqlens": _cu_seqlens(lengths, generator.device),
            "max_seqlen": most,
            "equal_lengths": least == most,
        }
        return {"qkv": qkv, **layout, "causal": causal}

    def cost(element: int) -> Cost:
        row, product = tokens * heads * head_size * element, 2 * pairs * heads * head_size
        return Cost(4 * row, 2 * product, 8 * row, 5 * product)

    name = f"{batch}x{most}" if least == most else f"{batch}x{least}..{most}"
    return Workload(op, f"{name} h{heads} e{head_size}{' causal' if causal else ''}", draw, ("qkv",), cost)


def _cross_attention(
    op: str, batch: int, most: int, heads: int, head_size: int, least: int, keys: int
) -> Workload:
    """`batch` sequences of `least` to `most` queries, each with `keys` keys."""
    lengths = _lengths(batch, least, most)
    queries = int(lengths.sum())

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "q": randn(generator, dtype, queries, heads, head_size),
            "kv": randn(generator, dtype, batch * keys, 2, heads, head_size),
            "cu_seqlens_q": _cu_seqlens(lengths, generator.device),
            "cu_seqlens_k": _cu_seqlens(torch.full_like(lengths, keys), generator.device),
            "max_seqlen_q": most,
            "max_seqlen_k": keys,
            "equal_keys": True,
        }

    def cost(element: int) -> Cost:
        row, product = heads * head_size * element, 2 * queries * keys * heads * head_size
        forward = 2 * (queries + batch * keys) * row
        return Cost(forward, 2 * product, 2 * forward, 5 * product)

    name = f"{batch}x{most if least == most else f'{least}..{most}'} of {keys} h{heads} e{head_size}"
    return Workload(op, name, draw, ("q", "kv"), cost)


def _linear_cross_entropy(op: str, rows: int, classes: int, width: int) -> Workload:
    """A masked-prediction head."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        hidden, weight = (
            randn(generator, dtype, rows, width),
            (randn(generator, torch.float32, classes, width) / math.sqrt(width)).to(dtype),
        )
        labels = torch.randint(classes, (rows,), generator=generator, device=generator.device)
        return {
            "hidden": hidden,
            "weight": weight,
            "bias": 0.1 * randn(generator, dtype, classes),
            "labels": labels,
        }

    def cost(element: int) -> Cost:
        product, operands = 2 * rows * classes * width, (rows + classes) * width * element
        return Cost(operands, product, 2 * operands, 2 * product)

    return Workload(op, f"{rows}x{classes} d{width}", draw, ("hidden", "weight", "bias"), cost)


def _info_nce(op: str, batch: int, ranks: int, width: int) -> Workload:
    """Features of `batch` pairs on each of `ranks` ranks, at the paper's initial temperature."""
    total = batch * ranks

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        image = F.normalize(randn(generator, torch.float32, batch, width), dim=1)
        text = F.normalize(
            image + 3.0 / math.sqrt(width) * randn(generator, torch.float32, batch, width), dim=1
        )
        log_scale = torch.full((1,), math.log(1 / 0.07), device=generator.device)
        return {
            "image": image.to(dtype),
            "text": text.to(dtype),
            "log_scale": log_scale,
            "row_mask": torch.ones(batch, device=generator.device),
        }

    def cost(element: int) -> Cost:
        product, operands = 2 * batch * total * width, 2 * (total if ranks > 1 else batch) * width * element
        both = 1 if ranks == 1 else 2
        return Cost(operands, both * product, operands + 2 * batch * width * element, 2 * product)

    name = f"{batch}x{total} r{width}"
    return Workload(
        op, name, draw, ("image", "text", "log_scale"), cost, ranks=ranks, exact=ranks == 1 and batch <= 8192
    )


def _sigmoid_loss(op: str, batch: int, ranks: int, width: int) -> Workload:
    """The same, at the published initial scale and bias."""
    contrastive = _info_nce(op, batch, ranks, width)

    def draw(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        drawn = contrastive.draw(generator, dtype)
        ten = torch.full((1,), 10.0, device=generator.device)
        mask = drawn.pop("row_mask")
        return {**drawn, "log_scale": ten.log(), "bias": -ten, "text_mask": mask}

    def cost(element: int) -> Cost:
        product, operands = 2 * batch * batch * ranks * width, batch * (1 + ranks) * width * element
        return Cost(2 * operands, 3 * product, operands, 0)

    return dataclasses.replace(
        contrastive, draw=draw, differentiable=(*contrastive.differentiable, "bias"), cost=cost
    )


_ROWS = {
    "gpu": ((4352, 768), (50432, 768), (70400, 768)),
    "cpu": ((4352, 768), (12608, 192)),
    "quick": ((64, 32),),
}
_CAPTIONS = {
    "gpu": ((256, 12, 20, 768), (256, 12, 77, 768)),
    "cpu": ((256, 12, 20, 192),),
    "quick": ((3, 2, 7, 16),),
}
SHAPES: dict[str, tuple[Callable[..., Workload], Mapping[str, tuple[tuple[int, ...], ...]]]] = {
    "pack": (_packing, _CAPTIONS),
    "unpack": (_packing, _CAPTIONS),
    "fuse_sequences": (
        _fuse,
        {"gpu": ((256, 197, 12, 20, 768),), "cpu": ((64, 65, 12, 20, 192),), "quick": ((3, 5, 2, 7, 16),)},
    ),
    "varlen_attention": (
        _attention,
        {
            "gpu": (
                *((batch, length, 12, 64, length) for batch in (128, 256) for length in (77, 197, 275)),
                *(
                    (256, 275, 12, 64, 207),
                    (256, 20, 12, 64, 12),
                    (64, 512, 12, 64, 512),
                    (32, 1024, 12, 64, 1024),
                ),
                *((256, 77, 8, 64, 77, True), (256, 77, 8, 64, 12, True), (64, 512, 8, 64, 512, True)),
            ),
            "cpu": (
                (16, 197, 3, 64, 197),
                (64, 40, 3, 64, 28),
                (64, 20, 3, 64, 12),
                (16, 77, 8, 64, 77, True),
            ),
            "quick": ((3, 9, 2, 32, 9), (3, 9, 2, 32, 4), (3, 9, 2, 32, 9, True), (3, 9, 2, 32, 4, True)),
        },
    ),
    "varlen_cross_attention": (
        _cross_attention,
        {
            "gpu": ((256, 30, 12, 64, 12, 257), (256, 256, 12, 64, 256, 197)),
            "cpu": ((64, 20, 3, 64, 12, 65), (16, 64, 3, 64, 64, 197)),
            "quick": ((3, 9, 2, 32, 4, 7),),
        },
    ),
    "layer_norm": (_layer_norm, _ROWS),
    "add_layer_norm": (_layer_norm, _ROWS),
    "dropout": (_dropout, _ROWS),
    "linear_gelu": (
        _linear_gelu,
        {
            "gpu": ((4352, 768, 3072), (50432, 768, 3072), (70400, 768, 3072)),
            "cpu": ((4352, 192, 768),),
            "quick": ((16, 8, 32),),
        },
    ),
    "gelu_linear": (
        _gelu_linear,
        {"gpu": ((50432, 3072, 768),), "cpu": ((4352, 768, 192),), "quick": ((16, 32, 8),)},
    ),
    "linear_cross_entropy": (
        _linear_cross_entropy,
        {
            "gpu": ((576, 30522, 768), (2880, 30522, 768), (19200, 8192, 768), (19584, 30522, 768)),
            "cpu": ((576, 30522, 192), (2880, 30522, 192), (2400, 8192, 192)),
            "quick": ((7, 97, 16),),
        },
    ),
    "info_nce": (
        _info_nce,
        {
            "gpu": ((1024, 8, 768), (4096, 8, 768), (2048, 64, 768), (8192, 1, 768), (32768, 1, 768)),
            "cpu": (
                (256, 1, 256),
                (4096, 1, 512),
                (8192, 1, 256),
                (16384, 1, 256),
                (4096, 8, 256),
                (32768, 1, 256),
            ),
            "quick": ((24, 1, 16), (12, 3, 16)),
        },
    ),
    "sigmoid_loss": (
        _sigmoid_loss,
        {
            "gpu": ((4096, 8, 768), (8192, 1, 768), (32768, 1, 768)),
            "cpu": ((256, 1, 256), (4096, 1, 512), (8192, 1, 256)),
            "quick": ((24, 1, 16), (12, 3, 16)),
        },
    ),
}
"""Workload function by operator, and its arguments by size."""
