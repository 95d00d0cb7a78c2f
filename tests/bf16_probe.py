"""What Triton's interpreter makes of bf16: prints one JSON object with the largest error of each thing tried.
`repair` as argument repairs it first.
"""

from __future__ import annotations

import json
import os
import sys

import torch

os.environ["TRITON_INTERPRET"] = "1"
import triton  # noqa: E402  (the variable is read when a kernel is defined)
import triton.language as tl  # noqa: E402

SIZE = 64


@triton.jit
def round_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def arithmetic_kernel(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    left, right = tl.load(a + at), tl.load(b + at)
    tl.store(out + at, left + right)
    tl.store(out + SIZE + at, left - right)
    tl.store(out + 2 * SIZE + at, left * right)
    tl.store(out + 3 * SIZE + at, tl.where(left > right, left, right))
    tl.store(out + 4 * SIZE + at, -left)
    tl.store(out + 5 * SIZE + at, tl.maximum(left, right))


@triton.jit
def dot_kernel(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference; infinite where one is a NaN and the other is not."""
    value, expected = value.double(), expected.double()
    agree = (value == expected) | (value.isnan() & expected.isnan())
    return float((value - expected).abs().masked_fill(agree, 0.0).nan_to_num(float("inf")).max())


def errors() -> dict[str, float]:
    """Runs the three kernels on numbers that show each fault, special values among them."""
    generator = torch.Generator().manual_seed(0)
    halfway = torch.tensor(
        [
            1 + 2.0**-8,
            1 + 3 * 2.0**-8,
            -1 - 2.0**-8,
            3.4e38,
            1e-40,
            -1e-40,
            0.0,
            -0.0,
            float("inf"),
            float("-inf"),
            float("nan"),
        ]
    )
    x = torch.cat([halfway, torch.randn(SIZE - len(halfway), generator=generator)])
    rounded = torch.empty(SIZE, dtype=torch.bfloat16)
    round_kernel[(1,)](x, rounded, SIZE)

    a, b = torch.randn(2, SIZE, generator=generator).bfloat16()
    results = torch.empty(6, SIZE, dtype=torch.bfloat16)
    arithmetic_kernel[(1,)](a, b, results, SIZE)
    expected = torch.stack([a + b, a - b, a * b, torch.maximum(a, b), -a, torch.maximum(a, b)])

    left, right = torch.randint(-8, 9, (2, SIZE, SIZE), generator=generator).bfloat16()
    product = torch.empty(SIZE, SIZE)
    dot_kernel[(1,)](left, right, product, SIZE)
    return {
        "rounding": difference(rounded, x.bfloat16()),
        "arithmetic": difference(results, expected),
        "dot": difference(product, left.double() @ right.double()),
    }


if __name__ == "__main__":
    if "repair" in sys.argv[1:]:
        import interpreter_bf16

        interpreter_bf16.install()
    json.dump(errors() | {"triton": triton.__version__}, sys.stdout)
