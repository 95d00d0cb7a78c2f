"""Packed attention against attention of each sequence alone, in fp64; what its kernels must not read, and
every tile they ship.
"""

import flava_kernels.flops  # noqa: F401  registers the formulas
import kernel_checks
import pytest
import torch
import torch.nn.functional as F
from flava_kernels import attention, attention_reference, dispatch
from flava_kernels.attention import varlen_attention
from flava_kernels.cases.packing import cu_seqlens_of
from op_checks import relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

IMPLEMENTATIONS = ["torch", pytest.param("triton", marks=pytest.mark.triton)]


def one_by_one(qkv, cu_seqlens, causal=False):
    out = []
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = qkv[start:stop].permute(1, 2, 0, 3)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(
                ~torch.ones(stop - start, stop - start, dtype=torch.bool).tril(), float("-inf")
            )
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def with_gradient(function, qkv, upstream):
    qkv = qkv.detach().clone().requires_grad_()
    out = function(qkv)
    out.backward(upstream)
    return out.detach(), qkv.grad


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("lengths", [(5,), (1, 7, 3), (4, 4, 4), (0, 6, 2, 0), (31, 2, 17)])
def test_equals_attention_of_each_sequence_alone(monkeypatch, lengths, kept, causal):
    """With the probabilities kept, and computed again for one sequence at a time; causal in blocks of four
    queries.
    """
    monkeypatch.setattr(attention_reference, "LONGEST_KEPT", 4 if kept else 0)
    monkeypatch.setattr(attention_reference, "SCORES_BYTES", 1)
    monkeypatch.setattr(attention_reference, "CAUSAL_QUERIES", 4)
    torch.manual_seed(0)
    cu_seqlens = cu_seqlens_of(lengths)
    qkv, upstream = (
        torch.randn(sum(lengths), 3, 2, 8, dtype=torch.float64),
        torch.randn(sum(lengths), 2, 8, dtype=torch.float64),
    )
    equal = len(set(lengths)) == 1
    ours = with_gradient(
        lambda x: varlen_attention(x, cu_seqlens, max(lengths), equal_lengths=equal, causal=causal),
        qkv,
        upstream,
    )
    for value, expected in zip(
        ours, with_gradient(lambda x: one_by_one(x, cu_seqlens, causal), qkv, upstream), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("longest", [40, 41])
def test_a_larger_max_seqlen_changes_nothing(longest):
    """Five head sizes, the most at which probabilities are kept, and one more."""
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32)
    qkv, upstream = torch.randn(8, 3, 2, 8, dtype=torch.float64), torch.randn(8, 2, 8, dtype=torch.float64)
    exact = with_gradient(lambda x: varlen_attention(x, cu_seqlens, 5), qkv, upstream)
    for value, expected in zip(
        with_gradient(lambda x: varlen_attention(x, cu_seqlens, longest), qkv, upstream), exact, strict=True
    ):
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_log_sum_exp_is_in_base_2(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    qkv = torch.randn(20, 3, 2, 32)
    _, lse = torch.ops.flava_kernels.varlen_attention(qkv, cu_seqlens_of((3, 17)), 17, False, False, None)
    q, k, _ = qkv[3:].double().permute(1, 2, 0, 3)
    expected = (q @ k.mT / 32**0.5).exp().sum(-1).log2()
    torch.testing.assert_close(lse[:, 3:], expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("padded", "causal"), [(False, False), (True, False), (False, True)])
def test_the_two_forward_references_agree(padded, causal):
    torch.manual_seed(0)
    rows, valid = (
        torch.randn(3, 6, 3, 2, 8, dtype=torch.float64),
        torch.arange(6) < torch.tensor([6, 1, 4])[:, None],
    )
    plain = attention_reference.plain_attention(rows, valid if padded else None, causal)
    for value, expected in zip(
        plain,
        attention_reference.flash_attention_on_cpu(rows, valid if padded else None, causal),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("lengths", [(3, 0, 14, 5), (30, 40, 1)])
def test_nothing_of_other_sequences_or_of_memory_around_leaks(monkeypatch, implementation, lengths, causal):
    """Queries, keys, values and upstream gradients are views into NaN, and one sequence is NaN itself."""
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    cu_seqlens, total = cu_seqlens_of(lengths), sum(lengths)
    clean, upstream = torch.randn(total, 3, 2, 32), torch.randn(total, 2, 32)
    expected = with_gradient(
        lambda x: varlen_attention(x, cu_seqlens, max(lengths), causal=causal), clean, upstream
    )
    around, around_upstream = (
        torch.full((total + 90, 3, 4, 40), torch.nan),
        torch.full((total + 90, 3, 40), torch.nan),
    )
    qkv, grad = around[45:-45, :, 1:3, 4:36], around_upstream[45:-45, :2, 8:]
    qkv.copy_(clean), grad.copy_(upstream)
    qkv[: lengths[0]], grad[: lengths[0]] = torch.nan, torch.nan
    out, lse = torch.ops.flava_kernels.varlen_attention(qkv, cu_seqlens, max(lengths), False, causal, None)
    d_qkv, _ = torch.ops.flava_kernels.varlen_attention_backward(
        grad, qkv, out, lse, cu_seqlens, max(lengths), False, causal, None
    )
    torch.testing.assert_close(out[lengths[0] :], expected[0][lengths[0] :], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(d_qkv[lengths[0] :], expected[1][lengths[0] :], rtol=1e-5, atol=1e-5)
    assert out[: lengths[0]].isnan().all()


@pytest.mark.parametrize(("causal", "biased"), [(False, False), (True, True)])
def test_opcheck(causal, biased):
    qkv, cu_seqlens = torch.randn(9, 3, 2, 32, requires_grad=True), cu_seqlens_of((4, 0, 5))
    bias = torch.randn(3 * 2 * 32, requires_grad=True) if biased else None
    torch.library.opcheck(
        torch.ops.flava_kernels.varlen_attention.default, (qkv, cu_seqlens, 5, False, causal, bias)
    )
    out, lse = (
        value.detach()
        for value in torch.ops.flava_kernels.varlen_attention(qkv, cu_seqlens, 5, False, causal, None)
    )
    backward = torch.ops.flava_kernels.varlen_attention_backward.default
    torch.library.opcheck(
        backward,
        (
            torch.randn(9, 2, 32),
            qkv.detach(),
            out,
            lse,
            cu_seqlens,
            5,
            False,
            causal,
            None if bias is None else bias.detach(),
        ),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_compiles_into_one_graph(causal):
    torch.manual_seed(0)
    qkv, upstream, cu_seqlens = torch.randn(9, 3, 2, 32), torch.randn(9, 2, 32), cu_seqlens_of((4, 5))

    def function(x):
        return varlen_attention(x * 2, cu_seqlens, 5, causal=causal) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value, expected in zip(
        with_gradient(compiled, qkv, upstream), with_gradient(function, qkv, upstream), strict=True
    ):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("custom", [False, True])
def test_counts_the_operations_of_plain_attention(monkeypatch, custom):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    qkv, cu_seqlens, upstream = torch.randn(10, 3, 2, 32), cu_seqlens_of((5, 5)), torch.randn(10, 2, 32)
    counted = []
    for function in (
        lambda x: varlen_attention(x, cu_seqlens, 5),
        lambda x: attention.definition(x, cu_seqlens, 5),
    ):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            with_gradient(function, qkv, upstream)
        counted.append(counter.get_total_flops())
    forward = 4 * 2 * 5**2 * 2 * 32
    assert counted[1] == 3 * forward, "plain attention keeps its scores"
    assert counted[0] == counted[1] + (forward // 2 if custom else 0)


@pytest.mark.parametrize(
    ("custom", "forward", "backward"), [(True, 2 * 8256, 5 * 8256), (False, 2 * 12288, 4 * 12288)]
)
def test_counts_half_of_the_operations_of_causal_attention(monkeypatch, custom, forward, backward):
    """By hand, at 128 tokens: 128 * 129 / 2 pairs as an operator; on a CPU two blocks, 64 queries with 64
    keys and 64 with 128.
    """
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    qkv, cu_seqlens = torch.randn(256, 3, 2, 32, requires_grad=True), cu_seqlens_of((128, 128))
    with FlopCounterMode(display=False) as counter:
        out = varlen_attention(qkv, cu_seqlens, 128, causal=True)
    assert counter.get_total_flops() == 2 * 2 * 2 * 32 * forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * 32 * backward


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("token", [0, 1, 15, 16, 64, 69])
def test_a_token_changes_nothing_before_it_when_causal(monkeypatch, implementation, token):
    """Outputs bit for bit, and gradients of a loss that reads those outputs only; everything from the token
    on does change.
    """
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    cu_seqlens, qkv, upstream = cu_seqlens_of((5, 70)), torch.randn(75, 3, 2, 32), torch.randn(75, 2, 32)
    place = 5 + token
    upstream[place:] = 0
    changed = qkv.clone()
    changed[place] = torch.randn(3, 2, 32)
    (out, d_qkv), (other, d_other) = (
        with_gradient(lambda x: varlen_attention(x, cu_seqlens, 70, causal=True), x, upstream)
        for x in (qkv, changed)
    )
    assert torch.equal(out[:place], other[:place])
    assert torch.equal(d_qkv[:place], d_other[:place])
    assert not d_qkv[place:].any() and not d_other[place:].any()
    assert (out[place:] != other[place:]).flatten(1).any(1).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_causal_attention_of_torch(monkeypatch, implementation):
    """At the shape of CLIP's text encoder, with heads of 64 and 77 tokens."""
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    cu_seqlens, qkv, upstream = cu_seqlens_of((77, 77)), torch.randn(154, 3, 2, 64), torch.randn(154, 2, 64)

    def of_torch(x):
        q, k, v = x.unflatten(0, (2, 77)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1)

    ours = with_gradient(
        lambda x: varlen_attention(x, cu_seqlens, 77, equal_lengths=True, causal=True), qkv, upstream
    )
    for value, expected in zip(ours, with_gradient(of_torch, qkv.double(), upstream.double()), strict=True):
        assert relative_error(value, expected) < 1e-6


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_finite_differences(monkeypatch, custom, causal):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    monkeypatch.setattr(attention_reference, "CAUSAL_QUERIES", 3)
    torch.manual_seed(0)
    qkv, cu_seqlens = (
        torch.randn(9, 3, 2, 4, dtype=torch.float64, requires_grad=True),
        cu_seqlens_of((7, 0, 2)),
    )
    assert torch.autograd.gradcheck(lambda x: varlen_attention(x, cu_seqlens, 7, causal=causal), qkv)


@pytest.mark.triton
def test_causal_kernels_visit_no_tile_behind_the_diagonal():
    kernel_checks.causal_attention_of_any_tile(torch.float32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(8, 3, 2, 32, dtype=torch.float64), cu_seqlens_of((8,)), 8), "float64"),
        ((torch.zeros(8, 3, 2, 32), cu_seqlens_of((8,)).long(), 8), "int64"),
        ((torch.zeros(8, 3, 2, 48), cu_seqlens_of((8,)), 8), "head size is 48"),
        ((torch.zeros(8, 3, 2, 64)[..., ::2], cu_seqlens_of((8,)), 8), "not contiguous"),
        ((torch.zeros(8, 3, 2, 32), torch.zeros(65537, dtype=torch.int32), 8), "65536 sequences"),
        ((torch.zeros(8, 3, 2, 32), cu_seqlens_of((8,)), 2**24), "2^31"),
        (
            (torch.empty_strided((8, 3, 2, 32), (32, 2**30, 256, 1), device="meta"), cu_seqlens_of((8,)), 8),
            "parts and heads span 2^31",
        ),
        (
            (torch.empty_strided((8, 3, 2, 32), (32, 256, 2**31, 1), device="meta"), cu_seqlens_of((8,)), 8),
            "parts and heads span 2^31",
        ),
    ],
)
def test_says_what_the_kernels_do_not_take(arguments, words):
    assert attention.supports(torch.zeros(8, 3, 2, 32), cu_seqlens_of((8,)), 8) is None
    assert words in attention.supports(*arguments)


@pytest.mark.triton
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("head_size", attention.HEAD_SIZES)
def test_every_tile_that_ships_is_right(head_size, causal):
    """In fp32, on lengths below, at and above a tile."""
    from flava_kernels.triton_ops import attention as kernels
    from flava_kernels.triton_ops import attention_tiles as tiles

    torch.manual_seed(0)
    for backward, tables in (
        (False, (*tiles.FORWARD.values(), tiles.FORWARD_FP32)),
        (True, (*tiles.BACKWARD.values(), tiles.BACKWARD_FP32)),
    ):
        for tile in sorted(
            {(place, tile) for table in tables for place, tile in enumerate(table[head_size])}
        ):
            place, tile = tile
            longest = (*tiles.BUCKETS, 70)[place]
            lengths = (
                (longest - 1, 1, min(longest, tile.keys)) if place < 2 else (tile.keys + 1, tile.queries)
            )
            cu_seqlens, max_seqlen = cu_seqlens_of(lengths), longest if place < 3 else tiles.BUCKETS[-1] + 1
            qkv, upstream = (
                torch.randn(sum(lengths), 3, 1, head_size),
                torch.randn(sum(lengths), 1, head_size),
            )
            out, d_qkv = with_gradient(
                lambda x, cu=cu_seqlens: one_by_one(x, cu, causal), qkv.double(), upstream.double()
            )
            ours, lse = kernels.forward(qkv, cu_seqlens, max_seqlen, causal, None if backward else tile)
            assert relative_error(ours, out) < 1e-6, (tile, lengths)
            if backward:
                bias = qkv.new_empty(3 * head_size)
                saved = upstream, qkv, ours, lse, cu_seqlens, max_seqlen, causal
                d_ours, d_bias = kernels.backward(*saved, bias, tile)
                assert relative_error(d_ours, d_qkv) < 2e-6, (tile, lengths)
                assert relative_error(d_bias, d_qkv.sum(0).flatten()) < 2e-6, (tile, lengths)
                assert torch.equal(kernels.backward(*saved, tile=tile)[0], d_ours)
