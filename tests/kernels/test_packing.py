"""Padded and packed layouts, by hand and against torch.nn.utils.rnn."""

import pytest
import torch
from flava_kernels import packing
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.packing import pack, unpack

LENGTHS = (2, 0, 5, 1)


def test_equals_pad_sequence():
    torch.manual_seed(0)
    parts = [torch.randn(length, 3) for length in LENGTHS]
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    assert torch.equal(unpack(torch.cat(parts), cu_seqlens_of(LENGTHS), 5), padded)
    assert torch.equal(pack(padded, cu_seqlens_of(LENGTHS), 8), torch.cat(parts))


@pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])
def test_padding_is_never_read_and_gets_no_gradient(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    cu_seqlens = cu_seqlens_of(LENGTHS)
    padded = torch.full((4, 6, 3), torch.nan)
    for sequence, length in enumerate(LENGTHS):
        padded[sequence, :length] = 1.0
    padded.requires_grad_()
    packed = pack(padded, cu_seqlens, 8)
    assert torch.equal(packed, torch.ones(8, 3))
    packed.backward(torch.full((8, 3), 2.0))
    assert padded.grad.sum((1, 2)).tolist() == [6.0 * length for length in LENGTHS]
    assert padded.grad[1].eq(0).all() and padded.grad[0, 2:].eq(0).all()


@pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])
def test_takes_more_axes_and_strided_rows(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    cu_seqlens, whole = cu_seqlens_of(LENGTHS), torch.randn(10, 4, 2, 7)
    rows = whole[1:9, 1:3, :, :5]
    padded = unpack(rows, cu_seqlens, 5)
    assert padded.shape == (4, 5, 2, 2, 5)
    assert torch.equal(pack(padded, cu_seqlens, 8), rows)
    assert torch.equal(pack(padded.transpose(2, 3), cu_seqlens, 8), rows.transpose(1, 2))


def test_gradients():
    packed = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    padded = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpack(x, cu_seqlens_of(LENGTHS), 5), packed)
    assert torch.autograd.gradcheck(lambda x: pack(x, cu_seqlens_of(LENGTHS), 8), padded)


def test_opcheck():
    cu_seqlens = cu_seqlens_of(LENGTHS)
    torch.library.opcheck(
        torch.ops.flava_kernels.unpack.default, (torch.randn(8, 3, requires_grad=True), cu_seqlens, 5)
    )
    torch.library.opcheck(
        torch.ops.flava_kernels.pack.default, (torch.randn(4, 5, 3, requires_grad=True), cu_seqlens, 8)
    )


def test_compiles_into_one_graph():
    cu_seqlens, packed = cu_seqlens_of(LENGTHS), torch.randn(8, 3, requires_grad=True)
    compiled = torch.compile(
        lambda x: pack(unpack(x, cu_seqlens, 5) * 2, cu_seqlens, 8), fullgraph=True, backend="aot_eager"
    )
    out = compiled(packed)
    out.backward(torch.ones_like(out))
    assert torch.equal(out, 2 * packed) and packed.grad.eq(2).all()


def test_says_what_the_kernels_do_not_take():
    padded, cu_seqlens = torch.zeros(4, 5, 3), cu_seqlens_of(LENGTHS)
    assert packing.pack_supports(padded, cu_seqlens, 8) is None
    assert "int64" in packing.pack_supports(padded.long(), cu_seqlens, 8)
    assert "int64" in packing.unpack_supports(torch.zeros(8, 3), cu_seqlens.long(), 5)
