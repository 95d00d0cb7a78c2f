"""Attention kernels over packed sequences.

Forward, a program owns a tile of queries of one head of one sequence and iterates over the keys with an
online softmax. The scale is folded into the base-2 exponent, and only the last keys are masked.

Backward, a program owns a whole head of one sequence. It iterates over tiles of keys and, for each, over
tiles of queries. dK and dV stay in registers; dQ is accumulated tile by tile in an fp32 scratch that no other
program touches. So every sum has a fixed order and needs no atomics. rowsum(P * dP) is computed as
rowsum(O * dO).

With QKV_BIAS, a program also leaves the sums of dQ, dK and dV over its sequence, for the bias of the layer
before; column_sums.py adds those of all sequences. Only that of dQ is summed, as it was written. A query's
probabilities add up to one, so colsum(dV) = colsum(dO); the gradients of its scores add up to zero, so
colsum(dK) = 0: a constant in all keys changes nothing.

With CAUSAL, a query attends to no later key, and tiles without any pair are skipped: forward, the keys end
with the tile of queries; backward, the queries start with the tile of keys, and a tile's dQ is complete after
the last keys that it sees. Only tiles on the diagonal are masked.

Programs read their sequence's length from cu_seqlens; rows of other sequences are masked.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels import folded_bias
from flava_kernels.attention import HEAD_SIZES
from flava_kernels.triton_ops.attention_tiles import (
    BUCKETS,
    Tile,
    from_memory,
    longest_of_bucket,
    options,
    tile_of,
)
from flava_kernels.triton_ops.column_sums import TILE_COLUMNS, TILE_ROWS, TILE_WARPS, add_partial_sums, added
from flava_kernels.triton_ops.launch import ARCHITECTURES, Launch, architecture, ceil_div, on_its_device

LOG2_E = tl.constexpr(1.4426950408889634)

FOLDING_HEAD_SIZES = (64, 128)
"""With heads of 32 the compiler spills registers for the sums, so that torch adds up the rows."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@triton.jit
def _attend_to_keys(
    q,
    keys,
    values,
    row,
    key,
    length,
    token_stride,
    highest,
    total,
    weighted,
    HEAD_SIZE: tl.constexpr,
    EXPONENT: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One step of the online softmax; `highest` and `total` are in base 2.

    With MASKED, some keys may be past the end of the sequence or, with CAUSAL, later than a query.
    """
    place = key[:, None] * token_stride + tl.arange(0, HEAD_SIZE)[None, :]
    if MASKED:
        k = tl.load(keys + place, mask=(key < length)[:, None], other=0.0)
        v = tl.load(values + place, mask=(key < length)[:, None], other=0.0)
    else:
        k = tl.load(keys + place)
        v = tl.load(values + place)
    # ieee: products of fp32 inputs must not be rounded to TF32; for 16-bit inputs it makes no difference.
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED and CAUSAL:
        scores = tl.where(key[None, :] <= row[:, None], scores, float("-inf"))
    elif MASKED:
        scores = tl.where((key < length)[None, :], scores, float("-inf"))
    # EXPONENT = scale * log2(e): one multiplication for the scale and the base; exp2 is one instruction.
    new_highest = tl.maximum(highest, tl.max(scores, 1) * EXPONENT)
    p = tl.math.exp2(scores * EXPONENT - new_highest[:, None])
    # Rescales what was summed under the old maximum; 0 for the first keys, whose old maximum is -inf.
    shrink = tl.math.exp2(highest - new_highest)
    weighted = tl.dot(p.to(v.dtype), v, weighted * shrink[:, None], input_precision="ieee")
    return new_highest, total * shrink + tl.sum(p, 1), weighted


@triton.jit(do_not_specialize=["tokens"])
def attention_forward(
    qkv,
    cu_seqlens,
    out,
    lse,
    token_stride,
    part_stride,
    head_stride,
    tokens,
    HEAD_SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """qkv [T 3 h e] -> out [T h e], lse [h T] fp32, base 2. ONE_TILE: every sequence fits a tile of keys."""
    # Axis 0 holds the tiles of the longest sequence; programs past a shorter sequence's end return at once.
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - start
    if tl.program_id(0) * QUERIES >= length:
        return
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = row < length
    column = tl.arange(0, HEAD_SIZE)
    # int64, since T * token_stride may exceed 2^31; `supports` limits offsets within a sequence to int32.
    queries = qkv + start.to(tl.int64) * token_stride + head * head_stride
    keys = queries + part_stride
    values = keys + part_stride
    q = tl.load(queries + row[:, None] * token_stride + column[None, :], mask=inside[:, None], other=0.0)

    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES, HEAD_SIZE), tl.float32)
    key = tl.arange(0, KEYS)
    if ONE_TILE:
        highest, total, weighted = _attend_to_keys(
            q, keys, values, row, key, length, token_stride, highest, total, weighted,
            HEAD_SIZE, SCALE * LOG2_E, MASKED=True, CAUSAL=CAUSAL,
        )  # fmt: skip
    else:
        # Whole tiles of keys need no mask: they are inside the sequence and, with CAUSAL, before every query.
        whole = (tl.program_id(0) * QUERIES if CAUSAL else length) // KEYS * KEYS
        for first in range(0, whole, KEYS):
            highest, total, weighted = _attend_to_keys(
                q, keys, values, row, first + key, length, token_stride, highest, total, weighted,
                HEAD_SIZE, SCALE * LOG2_E, MASKED=False, CAUSAL=CAUSAL,
            )  # fmt: skip
        if CAUSAL and KEYS < QUERIES:
            for first in tl.range(
                whole, tl.minimum(length, (tl.program_id(0) + 1) * QUERIES), KEYS, num_stages=1
            ):
                highest, total, weighted = _attend_to_keys(
                    q, keys, values, row, first + key, length, token_stride, highest, total, weighted,
                    HEAD_SIZE, SCALE * LOG2_E, MASKED=True, CAUSAL=True,
                )  # fmt: skip
        elif whole < length:
            highest, total, weighted = _attend_to_keys(
                q, keys, values, row, whole + key, length, token_stride, highest, total, weighted,
                HEAD_SIZE, SCALE * LOG2_E, MASKED=True, CAUSAL=CAUSAL,
            )  # fmt: skip

    out_stride = tl.num_programs(1) * HEAD_SIZE
    target = (
        out + start.to(tl.int64) * out_stride + head * HEAD_SIZE + row[:, None] * out_stride + column[None, :]
    )
    tl.store(target, (weighted / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + head.to(tl.int64) * tokens + start + row, highest + tl.math.log2(total), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def attention_backward(
    qkv,
    out,
    grad,
    lse,
    cu_seqlens,
    d_qkv,
    d_q_sums,
    token_stride,
    part_stride,
    head_stride,
    grad_token_stride,
    grad_head_stride,
    tokens,
    bias_sums,
    HEAD_SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    CAUSAL: tl.constexpr,
    QKV_BIAS: tl.constexpr,
):
    """qkv [T 3 h e], out, grad [T h e], lse [h T] -> d_qkv [T 3 h e]; d_q_sums [h T e] fp32 is scratch.

    With ONE_TILE the scratch is unused. With QKV_BIAS, also bias_sums [b 3 h e] fp32.
    """
    # One program per head and sequence, so that dQ can be summed without atomics, in a fixed order.
    head, sequence = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - start
    out_stride = tl.num_programs(0) * HEAD_SIZE
    column = tl.arange(0, HEAD_SIZE)[None, :]
    queries = qkv + start.to(tl.int64) * token_stride + head * head_stride
    outs = out + start.to(tl.int64) * out_stride + head * HEAD_SIZE
    grads = grad + start.to(tl.int64) * grad_token_stride + head * grad_head_stride
    d_queries = d_qkv + start.to(tl.int64) * 3 * out_stride + head * HEAD_SIZE
    first_of_head = head.to(tl.int64) * tokens + start
    for first_key in range(0, length, KEYS):
        key = first_key + tl.arange(0, KEYS)
        real_key = (key < length)[:, None]
        k = tl.load(queries + part_stride + key[:, None] * token_stride + column, mask=real_key, other=0.0)
        v = tl.load(
            queries + 2 * part_stride + key[:, None] * token_stride + column, mask=real_key, other=0.0
        )
        d_k = tl.zeros((KEYS, HEAD_SIZE), tl.float32)
        d_v = tl.zeros((KEYS, HEAD_SIZE), tl.float32)
        for first_query in range(first_key // QUERIES * QUERIES if CAUSAL else 0, length, QUERIES):
            row = first_query + tl.arange(0, QUERIES)
            inside = row < length
            real_row = inside[:, None]
            q = tl.load(queries + row[:, None] * token_stride + column, mask=real_row, other=0.0)
            o = tl.load(outs + row[:, None] * out_stride + column, mask=real_row, other=0.0)
            d_o = tl.load(grads + row[:, None] * grad_token_stride + column, mask=real_row, other=0.0)
            # lse = inf makes p zero for rows past the end.
            row_lse = tl.load(lse + first_of_head + row, mask=inside, other=float("inf"))
            delta = tl.sum(o.to(tl.float32) * d_o.to(tl.float32), 1)
            scores = tl.dot(k, tl.trans(q), input_precision="ieee")
            p = tl.math.exp2(scores * (SCALE * LOG2_E) - row_lse[None, :])
            if not CAUSAL:
                # a padded key has score 0, which may be far above every real one: exp2 would overflow
                p = tl.where(real_key, p, 0.0)
            elif first_query < first_key + KEYS:  # below the diagonal every pair is real
                p = tl.where(key[:, None] <= row[None, :], p, 0.0)
            # Operands are rounded to the input dtype for the matrix units; the sums stay fp32.
            d_v = tl.dot(p.to(d_o.dtype), d_o, d_v, input_precision="ieee")
            d_p = tl.dot(v, tl.trans(d_o), input_precision="ieee")
            d_scores = (p * (d_p - delta[None, :])).to(q.dtype)
            d_k = tl.dot(d_scores, q, d_k, input_precision="ieee")
            d_q = tl.dot(tl.trans(d_scores), k, input_precision="ieee")
            d_q_place = d_queries + row[:, None] * (3 * out_stride) + column
            if ONE_TILE:
                tl.store(d_q_place, (d_q * SCALE).to(d_qkv.dtype.element_ty), mask=real_row)
            else:
                sums = d_q_sums + (first_of_head + row)[:, None] * HEAD_SIZE + column
                # The first keys start the sum; the last ones that a query sees finish it and write dQ.
                if first_key > 0:
                    d_q += tl.load(sums, mask=real_row, other=0.0)
                if first_key + KEYS < (tl.minimum(length, first_query + QUERIES) if CAUSAL else length):
                    tl.store(sums, d_q, mask=real_row)
                else:
                    tl.store(d_q_place, (d_q * SCALE).to(d_qkv.dtype.element_ty), mask=real_row)
        d_k_place = d_queries + out_stride + key[:, None] * (3 * out_stride) + column
        tl.store(d_k_place, (d_k * SCALE).to(d_qkv.dtype.element_ty), mask=real_key)
        tl.store(d_k_place + out_stride, d_v.to(d_qkv.dtype.element_ty), mask=real_key)
        if QKV_BIAS or not ONE_TILE:
            # What other threads of this program wrote is read next: partial sums, or at the end dQ.
            tl.debug_barrier()
    if QKV_BIAS:
        # After the loops, which leave no registers for sums; these rows are still in the cache.
        ROWS: tl.constexpr = QUERIES if QUERIES < 32 else 32
        d_q_sum = tl.zeros((ROWS, HEAD_SIZE), tl.float32)
        d_v_sum = tl.zeros((ROWS, HEAD_SIZE), tl.float32)
        for first in range(0, length, ROWS):
            row = (first + tl.arange(0, ROWS))[:, None]
            d_q = tl.load(d_queries + row * (3 * out_stride) + column, mask=row < length, other=0.0)
            d_o = tl.load(grads + row * grad_token_stride + column, mask=row < length, other=0.0)
            d_q_sum += d_q.to(tl.float32)
            d_v_sum += d_o.to(tl.float32)
        of_sequence = bias_sums + sequence.to(tl.int64) * (3 * out_stride)
        place = of_sequence + head * HEAD_SIZE + tl.arange(0, HEAD_SIZE)
        tl.store(place, tl.sum(d_q_sum, 0))
        tl.store(place + out_stride, tl.zeros((HEAD_SIZE,), tl.float32))
        tl.store(place + 2 * out_stride, tl.sum(d_v_sum, 0))


@on_its_device
def forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Runs `attention_forward`: returns out [T h e] and lse [h T]. `tile` overrides the table's."""
    tokens, _, heads, head_size = qkv.shape
    out, lse = qkv.new_empty(tokens, heads, head_size), qkv.new_empty(heads, tokens, dtype=torch.float32)
    tile = tile or tile_of(
        backward=False,
        dtype=qkv.dtype,
        arch=architecture(qkv.device),
        head_size=head_size,
        max_seqlen=max_seqlen,
    )
    grid = (ceil_div(max_seqlen, tile.queries), heads, cu_seqlens.shape[0] - 1)
    constexprs = _compiled_as(tile, head_size, max_seqlen, causal)
    attention_forward[grid](
        qkv, cu_seqlens, out, lse, *qkv.stride()[:3], tokens, **constexprs, **options(tile)
    )
    return out, lse


@on_its_device
def backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    qkv_bias: Tensor | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs `attention_backward`: returns d_qkv [T 3 h e], contiguous, and the gradient of its bias or [0]."""
    tokens, _, heads, head_size = qkv.shape
    tile = tile or tile_of(
        backward=True,
        dtype=qkv.dtype,
        arch=architecture(qkv.device),
        head_size=head_size,
        max_seqlen=max_seqlen,
    )
    constexprs = _compiled_as(tile, head_size, max_seqlen, causal)
    # offsets within a sequence are int32
    narrow = max(max_seqlen * grad.stride(0), heads * grad.stride(1)) < 2**31
    grad = grad if narrow and grad.stride(-1) == 1 else grad.contiguous()
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    d_q_sums = lse if constexprs["ONE_TILE"] else qkv.new_empty(heads, tokens, head_size, dtype=torch.float32)
    strides = (*qkv.stride()[:3], *grad.stride()[:2])
    sequences, columns = cu_seqlens.shape[0] - 1, 3 * heads * head_size
    folds = qkv_bias is not None and head_size in FOLDING_HEAD_SIZES
    bias_sums = qkv.new_empty(sequences, columns, dtype=torch.float32) if folds else lse
    attention_backward[(heads, sequences)](
        qkv, out, grad, lse, cu_seqlens, d_qkv, d_q_sums, *strides, tokens, bias_sums,
        **constexprs, QKV_BIAS=folds, **options(tile),
    )  # fmt: skip
    if qkv_bias is None:
        return d_qkv, qkv.new_empty(0)
    return d_qkv, added(bias_sums, qkv_bias) if folds else folded_bias.gradient(d_qkv, qkv_bias)


def _compiled_as(tile: Tile, head_size: int, max_seqlen: int, causal: bool) -> dict[str, int | float | bool]:
    one_tile = longest_of_bucket(max_seqlen) <= tile.keys
    return {
        "HEAD_SIZE": head_size,
        "SCALE": head_size**-0.5,
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "ONE_TILE": one_tile,
        "CAUSAL": causal,
    }


def launches() -> tuple[Launch, ...]:
    """Lists every configuration once; with qkv's bias those of bf16, and of other dtypes with heads of 64."""
    found: dict[tuple, Launch] = {}
    lengths = (*BUCKETS, BUCKETS[-1] + 1)
    ways = (("forward", ""), ("backward", ""), ("backward", ".qkv_bias"))
    for arch, (name, dtype), head_size, causal, longest, (way, folding) in product(
        ARCHITECTURES, DTYPES.items(), HEAD_SIZES, (False, True), lengths, ways
    ):
        folds, backward_pass = bool(folding), way == "backward"
        if folds and (head_size < 64 or (name != "bf16" and (head_size != 64 or causal))):
            continue
        tile = tile_of(
            backward=backward_pass, dtype=dtype, arch=arch, head_size=head_size, max_seqlen=longest
        )
        constexprs = _compiled_as(tile, head_size, longest, causal)
        bucket = longest if longest in BUCKETS else "long"
        launch = Launch(
            f"varlen_attention.{way}.{name}.{head_size}.{bucket}{'.causal' if causal else ''}{folding}",
            attention_backward if backward_pass else attention_forward,
            _types(f"*{name}", backward_pass),
            constexprs | ({"QKV_BIAS": folds} if backward_pass else {}),
            tile.num_warps,
            tile.num_stages,
            arch,
            from_memory=from_memory(tile, longest, dtype.itemsize, backward_pass, causal),
        )
        found.setdefault((arch, way, folds, name, head_size, causal, tile, constexprs["ONE_TILE"]), launch)
    sizes = {"COLUMNS": 3 * 768, "BLOCK_ROWS": TILE_ROWS, "BLOCK_COLUMNS": TILE_COLUMNS}
    sums = (
        Launch(
            f"varlen_attention.qkv_bias.{name}.768",
            add_partial_sums,
            {"PARTIALS": "*fp32", "TOTAL": f"*{name}", "rows": "i32"},
            sizes,
            TILE_WARPS,
            1,
            arch,
        )
        for arch, name in product(ARCHITECTURES, DTYPES)
    )
    return (*found.values(), *sums)


def _types(rows: str, backward_pass: bool) -> dict[str, str]:
    """Returns the arguments' types in the compiler's notation; `rows` is the type of a pointer to queries."""
    pointers = {"qkv": rows, "cu_seqlens": "*i32", "out": rows, "lse": "*fp32"}
    integers: tuple[str, ...] = ("token_stride", "part_stride", "head_stride", "tokens")
    if backward_pass:
        pointers |= {"grad": rows, "d_qkv": rows, "d_q_sums": "*fp32", "bias_sums": "*fp32"}
        integers += ("grad_token_stride", "grad_head_stride")
    return pointers | dict.fromkeys(integers, "i32")
