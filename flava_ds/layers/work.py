"""FLOPs of the layers in closed form: 2 per multiply-add, forward pass only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flava_kernels.attention import pairs

from flava_ds.layers.transformer import TransformerShape


def encoder_flops(
    shape: TransformerShape, lengths: Sequence[int], read: int | None = None, *, causal: bool = False
) -> float:
    """Returns the FLOPs of a transformer over packed sequences.

    Counts four projections, two MLP layers and the two matrix products of attention. `read` is the number of
    rows that are read (None: all); the last block computes its output projection and MLP for those only. With
    `causal`, a query is scored against the tokens up to its own.
    """
    d, f = shape.hidden_size, shape.intermediate_size
    tokens, scores = sum(lengths), sum(pairs(length, causal) for length in lengths)
    spared = 0 if read is None else (tokens - read) * finishing_flops(shape)
    return shape.num_hidden_layers * (2 * tokens * (4 * d * d + 2 * d * f) + 4 * scores * d) - spared


def finishing_flops(shape: TransformerShape) -> int:
    """Returns what the last block computes for a row that is read alone: output projection and MLP."""
    d, f = shape.hidden_size, shape.intermediate_size
    return 2 * (d * d + 2 * d * f)


def cross_attention_flops(
    shape: TransformerShape,
    lengths: Sequence[int],
    memory: int | Sequence[int],
    read: int | None = None,
    *,
    layers: int | None = None,
    memory_size: int | None = None,
    width: int | None = None,
) -> float:
    """Returns the FLOPs of attention to `memory` rows of each sequence, in every layer or in `layers`.

    Counts two projections of the tokens, two of the memory, and two products. Of the last layer only `read`
    rows attend (None: all), if all sequences have as many rows of memory. `memory_size` and `width` are those
    of CrossAttention.
    """
    d, layers = shape.hidden_size, shape.num_hidden_layers if layers is None else layers
    own, other = (width or d) * d, (width or d) * (memory_size or d)
    sizes = [memory] * len(lengths) if isinstance(memory, int) else memory
    idle = 0 if read is None else sum(lengths) - read
    tokens = layers * sum(lengths) - idle
    scores = layers * sum(n * m for n, m in zip(lengths, sizes, strict=True)) - idle * max(sizes, default=0)
    return 4 * own * tokens + 4 * other * layers * sum(sizes) + 4 * scores * (width or d)


def image_flops(shape: Any, size: int) -> float:
    """Counts the encoding of one image with an edge of `size` pixels of which the CLS alone is read."""
    patches = (size // shape.patch_size) ** 2
    return patch_flops(shape, patches) + encoder_flops(shape, [1 + patches], 1)


def patch_flops(shape: Any, patches: int) -> int:
    """Counts the embedding of patches."""
    return 2 * patches * shape.patch_size**2 * shape.num_channels * shape.hidden_size


def head_flops(hidden_size: int, vocab_size: int) -> float:
    """Returns a masked-prediction head's FLOPs per row."""
    return 2 * hidden_size * (hidden_size + vocab_size)
