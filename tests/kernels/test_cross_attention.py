"""Packed cross-attention against attention of each pair of sequences alone, in fp64; what its kernels must
not read, and every tile they ship.
"""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from flava_kernels import cross_attention, dispatch
from flava_kernels.attention import HEAD_SIZES, varlen_attention
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.cross_attention import varlen_cross_attention
from op_checks import relative_error
from torch.utils.flop_counter import FlopCounterMode

IMPLEMENTATIONS = ["torch", pytest.param("triton", marks=pytest.mark.triton)]
LENGTHS = ((3, 5), (4, 0), (0, 7), (2, 1))


def layout_of(lengths):
    """cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k of (queries, keys) pairs."""
    queries, keys = zip(*lengths, strict=True)
    return cu_seqlens_of(queries), cu_seqlens_of(keys), max(queries), max(keys)


def drawn(lengths, heads=2, head_size=32, dtype=torch.float32):
    """q, kv and an upstream gradient."""
    queries, keys = (sum(numbers) for numbers in zip(*lengths, strict=True))
    shapes = (queries, heads, head_size), (keys, 2, heads, head_size), (queries, heads, head_size)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def one_by_one(q, kv, lengths):
    out, asked, known = [], 0, 0
    for queries, keys in lengths:
        rows, (k, v) = (
            q[asked : asked + queries].transpose(0, 1),
            kv[known : known + keys].permute(1, 2, 0, 3),
        )
        scores = rows @ k.mT / q.shape[2] ** 0.5
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        asked, known = asked + queries, known + keys
    return torch.cat(out)


def with_gradients(function, q, kv, upstream):
    q, kv = (x.detach().clone().requires_grad_() for x in (q, kv))
    out = function(q, kv)
    out.backward(upstream)
    return out.detach(), q.grad, kv.grad


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lengths", [((5, 9),), LENGTHS, ((31, 4), (2, 40))])
def test_equals_attention_of_each_pair_alone_and_nothing_without_keys(monkeypatch, implementation, lengths):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    inputs = drawn(lengths)
    ours = with_gradients(lambda q, kv: varlen_cross_attention(q, kv, *layout_of(lengths)), *inputs)
    exact = with_gradients(lambda q, kv: one_by_one(q, kv, lengths), *(x.double() for x in inputs))
    for value, expected in zip(ours, exact, strict=True):
        assert relative_error(value, expected) < 1e-6
    if lengths == LENGTHS:
        assert not ours[0][3:7].any() and not ours[1][3:7].any(), "these queries have no keys"
        assert not ours[2][5:12].any(), "these keys are asked by nobody"


def test_equals_self_attention_of_the_same_tokens():
    torch.manual_seed(0)
    qkv, cu_seqlens = torch.randn(9, 3, 2, 32), cu_seqlens_of((4, 5))
    crossed = varlen_cross_attention(qkv[:, 0], qkv[:, 1:], cu_seqlens, cu_seqlens, 5, 5)
    torch.testing.assert_close(crossed, varlen_attention(qkv, cu_seqlens, 5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_of_other_sequences_or_of_memory_around_leaks(monkeypatch, implementation):
    """All inputs are views into NaN, and the first pair of sequences is NaN itself; the second has queries
    only, the third keys only.
    """
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    lengths = ((3, 5), (20, 0), (0, 70), (18, 33))
    clean = drawn(lengths)
    expected = with_gradients(lambda q, kv: varlen_cross_attention(q, kv, *layout_of(lengths)), *clean)
    around = [torch.full((x.shape[0] + 90, *x.shape[1:-2], 4, 40), torch.nan) for x in clean]
    q, kv, grad = (x[45:-45, ..., 1:3, 4:36] for x in around)
    for view, value, own in ((q, clean[0], 3), (kv, clean[1], 5), (grad, clean[2], 3)):
        view.copy_(value)
        view[:own] = torch.nan
    operators = torch.ops.flava_kernels
    out, lse = operators.varlen_cross_attention(q, kv, *layout_of(lengths), False)
    d_q, d_kv = operators.varlen_cross_attention_backward(grad, q, kv, out, lse, *layout_of(lengths), False)
    for value, wanted, own in zip((out, d_q, d_kv), expected, (3, 3, 5), strict=True):
        torch.testing.assert_close(value[own:], wanted[own:], rtol=1e-5, atol=1e-5)
        assert value[:own].isnan().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_log_sum_exp_is_in_base_2_and_that_of_nothing_minus_infinity(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    torch.manual_seed(0)
    q, kv, _ = drawn(((3, 20), (2, 0)))
    _, lse = torch.ops.flava_kernels.varlen_cross_attention(q, kv, *layout_of(((3, 20), (2, 0))), False)
    scores = q[:3].double().transpose(0, 1) @ kv[:, 0].double().permute(1, 2, 0) / 32**0.5
    torch.testing.assert_close(lse[:, :3], scores.exp().sum(-1).log2().float(), rtol=1e-6, atol=1e-6)
    assert (lse[:, 3:] == float("-inf")).all()


def test_opcheck():
    q, kv, grad = drawn(LENGTHS)
    operators, layout = torch.ops.flava_kernels, (*layout_of(LENGTHS), False)
    torch.library.opcheck(
        operators.varlen_cross_attention.default, (q.requires_grad_(), kv.requires_grad_(), *layout)
    )
    q, kv = q.detach(), kv.detach()
    out, lse = operators.varlen_cross_attention(q, kv, *layout)
    torch.library.opcheck(operators.varlen_cross_attention_backward.default, (grad, q, kv, out, lse, *layout))


def test_compiles_into_one_graph():
    torch.manual_seed(0)
    inputs = drawn(LENGTHS)

    def function(q, kv):
        return varlen_cross_attention(q * 2, kv, *layout_of(LENGTHS)) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value, expected in zip(
        with_gradients(compiled, *inputs), with_gradients(function, *inputs), strict=True
    ):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("custom", [False, True])
def test_gradients_are_those_of_finite_differences(monkeypatch, custom):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    torch.manual_seed(0)
    q, kv, _ = (x.requires_grad_() for x in drawn(LENGTHS, head_size=4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda q, kv: varlen_cross_attention(q, kv, *layout_of(LENGTHS)), (q, kv))


@pytest.mark.parametrize(("custom", "products"), [(True, 2 + 5), (False, 2 + 5)])
def test_counts_seven_products(monkeypatch, custom, products):
    """By hand; both ways compute the scores again."""
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    lengths = ((5, 9), (5, 9))
    with FlopCounterMode(display=False) as counter:
        with_gradients(lambda q, kv: varlen_cross_attention(q, kv, *layout_of(lengths)), *drawn(lengths))
    assert counter.get_total_flops() == products * 2 * 2 * 5 * 9 * 2 * 32


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"q": torch.zeros(8, 2, 32, dtype=torch.float64)}, "q has torch.float64, kv torch.float32"),
        ({"cu_seqlens_k": cu_seqlens_of((9,)).long()}, "int64"),
        ({"q": torch.zeros(8, 2, 48), "kv": torch.zeros(9, 2, 2, 48)}, "head size is 48"),
        ({"kv": torch.zeros(9, 2, 2, 64)[..., ::2]}, "not contiguous"),
        ({"cu_seqlens_q": torch.zeros(65537, dtype=torch.int32)}, "65536 sequences"),
        ({"max_seqlen_k": 2**24}, "16777216 keys spans 2^31"),
        (
            {"kv": torch.empty_strided((9, 2, 2, 32), (32, 2**31, 256, 1), device="meta")},
            "parts and heads span 2^31",
        ),
    ],
)
def test_says_what_the_kernels_do_not_take(changed, words):
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    taken = {"q": torch.zeros(8, 2, 32), "kv": torch.zeros(9, 2, 2, 32)}
    taken |= dict(zip(names, layout_of(((8, 9),)), strict=True))
    assert cross_attention.supports(**taken) is None
    assert words in cross_attention.supports(**taken | changed)


@pytest.mark.parametrize("custom", [False, True], ids=["function", "custom operator"])
@pytest.mark.parametrize(
    ("lengths", "longest", "equal", "message"),
    [
        (((3, 5), (4, 4)), (4, 4), False, "keys: the longest sequence is 0 with 5 rows, but at most 4"),
        (((3, 5), (4, 4)), (3, 5), False, "queries: the longest sequence is 1 with 4 rows, but at most 3"),
        (((3, 5), (4, 4)), (4, 5), True, "keys: equal_lengths promises 5 rows, but sequence 1 has 4"),
        (((3, 5), (4, 3)), (4, 5), False, "keys: cu_seqlens ends at 8, but there are 9 rows"),
    ],
)
def test_sequences_that_do_not_fit(monkeypatch, custom, lengths, longest, equal, message):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    with pytest.raises(ValueError, match=f"varlen_cross_attention, {message}"):
        varlen_cross_attention(
            torch.zeros(7, 1, 8), torch.zeros(9, 2, 1, 8), *layout_of(lengths)[:2], *longest, equal_keys=equal
        )


@pytest.mark.parametrize(
    ("kv", "keys"), [((9, 2, 2, 8), (9,)), ((9, 3, 1, 8), (9,)), ((9, 2, 1, 8), (4, 5)), ((9, 2, 1, 4), (9,))]
)
def test_shapes_that_do_not_belong_together(kv, keys):
    with pytest.raises(ValueError, match="do not belong together"):
        varlen_cross_attention(
            torch.zeros(7, 1, 8), torch.zeros(kv), cu_seqlens_of((7,)), cu_seqlens_of(keys), 7, 9
        )


@pytest.mark.triton
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_every_tile_that_ships_is_right(head_size):
    """In fp32, on lengths below, at and above a tile."""
    from flava_kernels.triton_ops import attention_tiles as tiles
    from flava_kernels.triton_ops import cross_attention as kernels

    torch.manual_seed(0)
    fp32 = {backward: tiles.BACKWARD_FP32 if backward else tiles.FORWARD_FP32 for backward in (False, True)}
    for backward, tables in ((False, tiles.CROSS_FORWARD), (True, tiles.CROSS_BACKWARD)):
        shipped = {tile for table in tables.values() for tile in table[head_size]}
        for tile in sorted(shipped | {fp32[backward][head_size][-1]}):
            lengths = ((tile.queries + 1, tile.keys + 1), (tile.queries, tile.keys), (tile.queries - 1, 3))
            inputs, layout = drawn(lengths, heads=1, head_size=head_size), layout_of(lengths)
            exact = with_gradients(
                lambda q, kv, lengths=lengths: one_by_one(q, kv, lengths), *(x.double() for x in inputs)
            )
            q, kv, upstream = inputs
            out, lse = kernels.forward(q, kv, *layout, None if backward else tile)
            assert relative_error(out, exact[0]) < 1e-6, (tile, lengths)
            if backward:
                ours = kernels.backward(upstream, q, kv, out, lse, *layout, tile)
                for value, expected in zip(ours, exact[1:], strict=True):
                    assert relative_error(value, expected) < 2e-6, (tile, lengths)
