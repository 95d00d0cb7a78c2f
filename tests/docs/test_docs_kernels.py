"""docs/kernels.md: the lines of plain torch that operators replace, against the operators."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from flava_kernels import OPS
from torch.nn.utils.rnn import pad_sequence

PAGE = Path(__file__).parents[2] / "docs/kernels.md"
REPLACED = re.findall(r"^\| `(.+)` \| `(\w+\(.+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
LENGTHS, KEYS = [1, 5, 2], 4


def names() -> dict:
    """Returns what both columns read, in fp64; the rows of `x` are those of `padded` without its padding."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    b, width, s = len(LENGTHS), 8, max(LENGTHS)
    total, valid = sum(LENGTHS), torch.arange(s) < torch.tensor(LENGTHS)[:, None]
    q, k, v = torch.randn(3, b, 2, s, 4).requires_grad_()
    k2, v2 = torch.randn(2, b, 2, KEYS, 4).requires_grad_()
    image, text = F.normalize(torch.randn(2, b, width), dim=-1)
    log_scale, bias = torch.tensor([1.5]), torch.tensor([-2.0])
    return {
        "torch": torch, "F": F, "pad_sequence": pad_sequence, "b": b, "valid": valid, "total": total,
        "norm": torch.nn.LayerNorm(width), "x": torch.randn(total, width), "a": torch.randn(total, width),
        "up": torch.nn.Linear(width, 12), "z": torch.randn(total, 12), "down": torch.nn.Linear(12, width),
        "q": q, "k": k, "v": v, "k2": k2, "v2": v2,
        "qkv": torch.stack([part.transpose(1, 2)[valid] for part in (q, k, v)], 1),
        "kv": torch.stack([k2, v2]).permute(1, 3, 0, 2, 4).flatten(0, 1),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(), "max_seqlen": s,
        "cu_seqlens_k": torch.arange(b + 1).int() * KEYS, "max_seqlen_k": KEYS,
        "head": torch.nn.Linear(width, 7), "rows": torch.tensor([6, 1, 2]), "labels": torch.tensor([0, 6, 3]),
        "image": image, "text": text, "log_scale": log_scale, "bias": bias, "own": torch.arange(b),
        "S": log_scale.exp() * image @ text.T, "padded": torch.randn(b, s, width), "lengths": LENGTHS,
        "cls": torch.randn(1, width), "images": torch.randn(b, 3, width),
    } | {name: op.function for name, op in OPS.items()}  # fmt: skip


def test_the_table_has_every_operator_but_dropout():
    assert {here.split("(")[0] for _, here in REPLACED} == set(OPS) - {"dropout"}


@pytest.mark.parametrize(("plain", "here"), REPLACED, ids=[here.split("(")[0] for _, here in REPLACED])
def test_an_operator_gives_what_its_line_gives(plain, here):
    try:
        expected, found = (eval(line, names()) for line in (plain, here))  # noqa: S307
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)
