"""Inputs for the linear cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from flava_kernels.op import Case, Limits

WIDTH = 12
IGNORED = -100


def cases() -> tuple[Case, ...]:
    """Returns vocabularies around a tile, 0 to many rows, ignored labels, indices, chunks, huge logits."""
    huge = {torch.float32: Limits(2e-6, 2e-3)}  # fp32 holds a logit of 1e4 to 5e-4
    return (
        _case("1 row, 97 classes", rows=1),
        _case("7 rows, 97 classes", rows=7),
        _case("64 rows, 97 classes", rows=64),
        _case("3 rows, 8192 classes", rows=3, classes=8192, margin=4.0),
        _case("3 rows, 4100 classes", rows=3, classes=4100),
        _case("3 rows, 30522 classes", rows=3, classes=30522, margin=4.0),
        _case("no rows", rows=0),
        _case("some labels ignored", rows=7, ignored=(0, 3, 6)),
        _case("all labels ignored", rows=4, ignored=(0, 1, 2, 3)),
        _case("rows by index", rows=7, of=19),
        _case("more rows by index than columns", rows=20, of=31),
        _case("rows by index, none", rows=0, of=5),
        _case("three chunks", rows=7, budget_bytes=3 * 97 * 4),
        _case("rows by index, a chunk each", rows=5, of=9, budget_bytes=1),
        _case("huge logits", rows=5, scale=2e3, dtypes=(torch.float32,), limits=huge),
    )


def _case(
    name: str, *, dtypes: tuple[torch.dtype, ...] | None = None, limits: dict | None = None, **draw: Any
) -> Case:
    chosen: dict[str, Any] = {} if dtypes is None else {"dtypes": dtypes}
    return Case(
        name,
        lambda generator: _draw(generator, **draw),
        ("hidden", "weight", "bias"),
        limits=limits or {},
        **chosen,
    )


def _draw(
    generator: Generator,
    *,
    rows: int,
    classes: int = 97,
    of: int | None = None,
    ignored: tuple[int, ...] = (),
    scale: float = 1.0,
    margin: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """Draws the arguments. Every other label has the largest logit by a wide margin, the rest the smallest.

    So rounding does not change which rows are correct.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, bias = normal(classes, WIDTH) * WIDTH**-0.5, normal(classes) / 4
    hidden, labels = normal(of or rows, WIDTH), torch.randint(classes, (rows,), generator=generator)
    chosen = torch.randperm(of or rows, generator=generator)[:rows] if of else torch.arange(rows)
    hidden[chosen[::2]] += 6 * weight[labels[::2]] / weight[labels[::2]].square().sum(1, keepdim=True)
    bias[labels[::2]] += margin
    hidden *= scale
    logits = hidden[chosen] @ weight.T + bias
    labels[1::2] = logits[1::2].argmin(1)
    labels[::2] = logits[::2].argmax(1)
    labels[list(ignored)] = IGNORED
    drawn = {"hidden": hidden, "weight": weight, "bias": bias, "labels": labels}
    return drawn | ({"rows": chosen} if of else {}) | options
