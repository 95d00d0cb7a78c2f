"""Packed attention against attention of each sequence alone, in fp64."""

import pytest
import torch
from flava_kernels.attention import varlen_attention


def one_by_one(qkv, cu_seqlens):
    out = []
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = qkv[start:stop].permute(1, 2, 0, 3)
        out.append(((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [(5,), (1, 7, 3), (4, 4, 4), (0, 6, 2, 0), (31, 2, 17)])
def test_equals_attention_of_each_sequence_alone(lengths):
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    qkv = torch.randn(sum(lengths), 3, 2, 8, dtype=torch.float64, requires_grad=True)
    reference = qkv.detach().clone().requires_grad_()
    grad = torch.randn(sum(lengths), 2, 8, dtype=torch.float64)
    out = varlen_attention(qkv, cu_seqlens, max(lengths), equal_lengths=len(set(lengths)) == 1)
    expected = one_by_one(reference, cu_seqlens)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(qkv.grad, reference.grad, rtol=1e-12, atol=1e-12)


def test_a_larger_max_seqlen_changes_nothing():
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32)
    qkv = torch.randn(8, 3, 2, 8, dtype=torch.float64)
    torch.testing.assert_close(varlen_attention(qkv, cu_seqlens, 5), varlen_attention(qkv, cu_seqlens, 40), rtol=1e-13, atol=1e-13)
