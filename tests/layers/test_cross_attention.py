"""Attention to other packed sequences, against torch's attention sample by sample."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from flava_ds.layers.cross_attention import varlen_cross_attention


def bounds(lengths) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def test_samples_attend_to_their_own_keys_alone():
    """Values and gradients; one sample has no keys and gets zeros, and both limits may be too large."""
    torch.manual_seed(0)
    of_q, of_k = (3, 1, 4, 2), (5, 2, 0, 7)
    q = torch.randn(10, 2, 8, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(14, 2, 2, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(10, 2, 8, dtype=torch.float64)
    found = varlen_cross_attention(q, kv, bounds(of_q), bounds(of_k), 6, 9)
    parts = []
    for own, keys in zip(q.split(of_q), kv.split(of_k), strict=True):
        k, v = keys.transpose(0, 2).unbind(1)
        whole = scaled_dot_product_attention(own.transpose(0, 1), k, v).transpose(0, 1)
        parts.append(whole if len(keys) else torch.zeros_like(own))
    expected = torch.cat(parts)
    torch.testing.assert_close(found, expected)
    assert not found[4:8].any()
    ours = torch.autograd.grad((found * weights).sum(), (q, kv))
    theirs = torch.autograd.grad((expected * weights).sum(), (q, kv))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
