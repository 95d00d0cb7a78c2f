"""Packed attention against attention of each sequence alone, in fp64; what its kernels must not read, and every tile they ship."""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from flava_kernels import attention, attention_reference, dispatch
from flava_kernels.attention import varlen_attention
from flava_kernels.cases.packing import cu_seqlens_of
from op_checks import relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

IMPLEMENTATIONS = ["torch", pytest.param("triton", marks=pytest.mark.triton)]


def one_by_one(qkv, cu_seqlens):
    out = []
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = qkv[start:stop].permute(1, 2, 0, 3)
        out.append(((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def with_gradient(function, qkv, upstream):
    qkv = qkv.detach().clone().requires_grad_()
    out = function(qkv)
    out.backward(upstream)
    return out.detach(), qkv.grad


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("lengths", [(5,), (1, 7, 3), (4, 4, 4), (0, 6, 2, 0), (31, 2, 17)])
def test_equals_attention_of_each_sequence_alone(monkeypatch, lengths, kept):
    """With the probabilities kept, and computed again for one sequence at a time."""
    monkeypatch.setattr(attention_reference, "LONGEST_KEPT", 4 if kept else 0)
    monkeypatch.setattr(attention_reference, "SCORES_BYTES", 1)
    torch.manual_seed(0)
    cu_seqlens = cu_seqlens_of(lengths)
    qkv, upstream = torch.randn(sum(lengths), 3, 2, 8, dtype=torch.float64), torch.randn(sum(lengths), 2, 8, dtype=torch.float64)
    ours = with_gradient(lambda x: varlen_attention(x, cu_seqlens, max(lengths), equal_lengths=len(set(lengths)) == 1), qkv, upstream)
    for value, expected in zip(ours, with_gradient(lambda x: one_by_one(x, cu_seqlens), qkv, upstream), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("longest", [40, 41])
def test_a_larger_max_seqlen_changes_nothing(longest):
    """Five head sizes, the most at which probabilities are kept, and one more."""
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32)
    qkv, upstream = torch.randn(8, 3, 2, 8, dtype=torch.float64), torch.randn(8, 2, 8, dtype=torch.float64)
    exact = with_gradient(lambda x: varlen_attention(x, cu_seqlens, 5), qkv, upstream)
    for value, expected in zip(with_gradient(lambda x: varlen_attention(x, cu_seqlens, longest), qkv, upstream), exact, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("longest", "kept"), [(40, True), (41, False)])
def test_keeps_the_probabilities_of_short_sequences_where_a_gradient_is_wanted(longest, kept):
    qkv, cu_seqlens, saved = torch.randn(longest, 3, 2, 8, requires_grad=True), cu_seqlens_of((longest,)), []

    def sizes_of_saved(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(sizes_of_saved, lambda tensor: tensor):
        varlen_attention(qkv, cu_seqlens, longest)
    assert saved.count((1, longest, longest)) == (2 if kept else 0)
    with torch.no_grad():
        assert not varlen_attention(qkv, cu_seqlens, longest).requires_grad


def test_autocast_leaves_it_in_the_dtype_of_its_input():
    """Probabilities that autocast made bf16 would meet fp32 gradients."""
    qkv, cu_seqlens, upstream = torch.randn(9, 3, 2, 8), cu_seqlens_of((2, 7)), torch.randn(9, 2, 8)
    exact = with_gradient(lambda x: varlen_attention(x, cu_seqlens, 7), qkv, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        qkv.requires_grad_()
        out = varlen_attention(qkv, cu_seqlens, 7)
    out.backward(upstream)
    for value, expected in zip((out.detach(), qkv.grad), exact, strict=True):
        assert relative_error(value, expected) < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_log_sum_exp_is_in_base_2(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    qkv = torch.randn(20, 3, 2, 32)
    _, lse = torch.ops.flava_kernels.varlen_attention(qkv, cu_seqlens_of((3, 17)), 17, False)
    q, k, _ = qkv[3:].double().permute(1, 2, 0, 3)
    expected = (q @ k.mT / 32**0.5).exp().sum(-1).log2()
    torch.testing.assert_close(lse[:, 3:], expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_the_two_forward_references_agree(padded):
    torch.manual_seed(0)
    rows, valid = torch.randn(3, 6, 3, 2, 8, dtype=torch.float64), torch.arange(6) < torch.tensor([6, 1, 4])[:, None]
    plain = attention_reference.plain_attention(rows, valid if padded else None)
    for value, expected in zip(plain, attention_reference.flash_attention_on_cpu(rows, valid if padded else None), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lengths", [(3, 0, 14, 5), (30, 40, 1)])
def test_nothing_of_other_sequences_or_of_memory_around_leaks(monkeypatch, implementation, lengths):
    """Queries, keys, values and upstream gradients are views into NaN, and one sequence is NaN itself."""
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    cu_seqlens, total = cu_seqlens_of(lengths), sum(lengths)
    clean, upstream = torch.randn(total, 3, 2, 32), torch.randn(total, 2, 32)
    expected = with_gradient(lambda x: varlen_attention(x, cu_seqlens, max(lengths)), clean, upstream)
    around, around_upstream = torch.full((total + 90, 3, 4, 40), torch.nan), torch.full((total + 90, 3, 40), torch.nan)
    qkv, grad = around[45:-45, :, 1:3, 4:36], around_upstream[45:-45, :2, 8:]
    qkv.copy_(clean), grad.copy_(upstream)
    qkv[: lengths[0]], grad[: lengths[0]] = torch.nan, torch.nan
    out, lse = torch.ops.flava_kernels.varlen_attention(qkv, cu_seqlens, max(lengths), False)
    d_qkv = torch.ops.flava_kernels.varlen_attention_backward(grad, qkv, out, lse, cu_seqlens, max(lengths), False)
    torch.testing.assert_close(out[lengths[0] :], expected[0][lengths[0] :], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(d_qkv[lengths[0] :], expected[1][lengths[0] :], rtol=1e-5, atol=1e-5)
    assert out[: lengths[0]].isnan().all()


def test_opcheck():
    qkv, cu_seqlens = torch.randn(9, 3, 2, 32, requires_grad=True), cu_seqlens_of((4, 0, 5))
    torch.library.opcheck(torch.ops.flava_kernels.varlen_attention.default, (qkv, cu_seqlens, 5, False))
    out, lse = (value.detach() for value in torch.ops.flava_kernels.varlen_attention(qkv, cu_seqlens, 5, False))
    backward = torch.ops.flava_kernels.varlen_attention_backward.default
    torch.library.opcheck(backward, (torch.randn(9, 2, 32), qkv.detach(), out, lse, cu_seqlens, 5, False))


def test_compiles_into_one_graph():
    torch.manual_seed(0)
    qkv, upstream, cu_seqlens = torch.randn(9, 3, 2, 32), torch.randn(9, 2, 32), cu_seqlens_of((4, 5))

    def function(x):
        return varlen_attention(x * 2, cu_seqlens, 5) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value, expected in zip(with_gradient(compiled, qkv, upstream), with_gradient(function, qkv, upstream), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("custom", [False, True])
def test_counts_the_operations_of_plain_attention(monkeypatch, custom):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    qkv, cu_seqlens, upstream = torch.randn(10, 3, 2, 32), cu_seqlens_of((5, 5)), torch.randn(10, 2, 32)
    counted = []
    for function in (lambda x: varlen_attention(x, cu_seqlens, 5), lambda x: attention.definition(x, cu_seqlens, 5)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            with_gradient(function, qkv, upstream)
        counted.append(counter.get_total_flops())
    forward = 4 * 2 * 5**2 * 2 * 32
    assert counted[1] == 3 * forward, "plain attention keeps its scores"
    assert counted[0] == counted[1] + (forward // 2 if custom else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(8, 3, 2, 32, dtype=torch.float64), cu_seqlens_of((8,)), 8), "float64"),
        ((torch.zeros(8, 3, 2, 32), cu_seqlens_of((8,)).long(), 8), "int64"),
        ((torch.zeros(8, 3, 2, 48), cu_seqlens_of((8,)), 8), "head size is 48"),
        ((torch.zeros(8, 3, 2, 64)[..., ::2], cu_seqlens_of((8,)), 8), "not contiguous"),
        ((torch.zeros(8, 3, 2, 32), torch.zeros(65537, dtype=torch.int32), 8), "65536 sequences"),
        ((torch.zeros(8, 3, 2, 32), cu_seqlens_of((8,)), 2**24), "2^31"),
        ((torch.empty_strided((8, 3, 2, 32), (32, 2**30, 256, 1), device="meta"), cu_seqlens_of((8,)), 8), "parts and heads span 2^31"),
        ((torch.empty_strided((8, 3, 2, 32), (32, 256, 2**31, 1), device="meta"), cu_seqlens_of((8,)), 8), "parts and heads span 2^31"),
    ],
)
def test_says_what_the_kernels_do_not_take(arguments, words):
    assert attention.supports(torch.zeros(8, 3, 2, 32), cu_seqlens_of((8,)), 8) is None
    assert words in attention.supports(*arguments)


@pytest.mark.triton
@pytest.mark.parametrize("head_size", attention.HEAD_SIZES)
def test_every_tile_that_ships_is_right(head_size):
    """In fp32, on lengths below, at and above a tile."""
    from flava_kernels.triton_ops import attention as kernels
    from flava_kernels.triton_ops import attention_tiles as tiles

    torch.manual_seed(0)
    for backward, tables in ((False, (*tiles.FORWARD.values(), tiles.FORWARD_FP32)), (True, (*tiles.BACKWARD.values(), tiles.BACKWARD_FP32))):
        for tile in sorted({(place, tile) for table in tables for place, tile in enumerate(table[head_size])}):
            place, tile = tile
            longest = (*tiles.BUCKETS, 70)[place]
            lengths = (longest - 1, 1, min(longest, tile.keys)) if place < 2 else (tile.keys + 1, tile.queries)
            cu_seqlens, max_seqlen = cu_seqlens_of(lengths), longest if place < 3 else tiles.BUCKETS[-1] + 1
            qkv, upstream = torch.randn(sum(lengths), 3, 1, head_size), torch.randn(sum(lengths), 1, head_size)
            out, d_qkv = with_gradient(lambda x, cu=cu_seqlens: one_by_one(x, cu), qkv.double(), upstream.double())
            ours, lse = kernels.forward(qkv, cu_seqlens, max_seqlen, False, None if backward else tile)
            assert relative_error(ours, out) < 1e-6, (tile, lengths)
            if backward:
                assert relative_error(kernels.backward(upstream, qkv, ours, lse, cu_seqlens, max_seqlen, tile), d_qkv) < 2e-6, (tile, lengths)
