"""Cross-attention kernels: queries and keys are packed apart, each with bounds of their own.

They are the kernels of attention.py without `causal` and with one more length: the keys of a sequence bound
the loops over keys, its queries those over queries. Without keys, a sum of nothing over 0 would be no number
forward; backward no tile of keys would write dQ. Both are zeros.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.attention import HEAD_SIZES
from flava_kernels.triton_ops.attention import LOG2_E, _attend_to_keys
from flava_kernels.triton_ops.attention_tiles import CROSS_QUERIES, Tile, cross_tile_of, from_memory, options
from flava_kernels.triton_ops.launch import (
    ARCHITECTURES,
    Launch,
    architecture,
    ceil_div,
    on_its_device,
)


@triton.jit(do_not_specialize=["tokens"])
def cross_attention_forward(
    q,
    kv,
    cu_seqlens_q,
    cu_seqlens_k,
    out,
    lse,
    query_stride,
    query_head_stride,
    key_stride,
    part_stride,
    key_head_stride,
    tokens,
    HEAD_SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """q [Tq h e], kv [Tk 2 h e] -> out [Tq h e], lse [h Tq] fp32, base 2."""
    # Axis 0 holds the tiles of the most queries; programs past a sequence's last query return at once.
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_seqlens_q + sequence)
    asking = tl.load(cu_seqlens_q + sequence + 1) - start
    if tl.program_id(0) * QUERIES >= asking:
        return
    first_key = tl.load(cu_seqlens_k + sequence)
    length = tl.load(cu_seqlens_k + sequence + 1) - first_key
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = row < asking
    column = tl.arange(0, HEAD_SIZE)
    # int64, since T * stride may exceed 2^31; `supports` limits offsets within a sequence to int32.
    queries = q + start.to(tl.int64) * query_stride + head * query_head_stride
    keys = kv + first_key.to(tl.int64) * key_stride + head * key_head_stride
    values = keys + part_stride
    rows = tl.load(queries + row[:, None] * query_stride + column[None, :], mask=inside[:, None], other=0.0)

    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES, HEAD_SIZE), tl.float32)
    key = tl.arange(0, KEYS)
    whole = length // KEYS * KEYS
    for first in range(0, whole, KEYS):
        highest, total, weighted = _attend_to_keys(
            rows, keys, values, row, first + key, length, key_stride, highest, total, weighted,
            HEAD_SIZE, SCALE * LOG2_E, MASKED=False, CAUSAL=False,
        )  # fmt: skip
    if whole < length:
        highest, total, weighted = _attend_to_keys(
            rows, keys, values, row, whole + key, length, key_stride, highest, total, weighted,
            HEAD_SIZE, SCALE * LOG2_E, MASKED=True, CAUSAL=False,
        )  # fmt: skip

    # A sum over no keys is 0: then the output is 0 and lse -inf.
    divisor = tl.where(total == 0.0, 1.0, total)
    out_stride = tl.num_programs(1) * HEAD_SIZE
    target = (
        out + start.to(tl.int64) * out_stride + head * HEAD_SIZE + row[:, None] * out_stride + column[None, :]
    )
    tl.store(target, (weighted / divisor[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + head.to(tl.int64) * tokens + start + row, highest + tl.math.log2(divisor), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def cross_attention_backward(
    q,
    kv,
    out,
    grad,
    lse,
    cu_seqlens_q,
    cu_seqlens_k,
    d_q,
    d_kv,
    d_q_sums,
    query_stride,
    query_head_stride,
    key_stride,
    part_stride,
    key_head_stride,
    grad_token_stride,
    grad_head_stride,
    tokens,
    HEAD_SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """q, out, grad [Tq h e], kv [Tk 2 h e], lse [h Tq] -> d_q [Tq h e], d_kv [Tk 2 h e].

    d_q_sums [h Tq e] fp32 is scratch for sequences with more keys than a tile.
    """
    # One program per head and sequence, so that dQ can be summed without atomics, in a fixed order.
    head, sequence = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seqlens_q + sequence)
    asking = tl.load(cu_seqlens_q + sequence + 1) - start
    start_of_keys = tl.load(cu_seqlens_k + sequence)
    length = tl.load(cu_seqlens_k + sequence + 1) - start_of_keys
    out_stride = tl.num_programs(0) * HEAD_SIZE
    column = tl.arange(0, HEAD_SIZE)[None, :]
    queries = q + start.to(tl.int64) * query_stride + head * query_head_stride
    keys = kv + start_of_keys.to(tl.int64) * key_stride + head * key_head_stride
    outs = out + start.to(tl.int64) * out_stride + head * HEAD_SIZE
    grads = grad + start.to(tl.int64) * grad_token_stride + head * grad_head_stride
    d_queries = d_q + start.to(tl.int64) * out_stride + head * HEAD_SIZE
    d_keys = d_kv + start_of_keys.to(tl.int64) * 2 * out_stride + head * HEAD_SIZE
    first_of_head = head.to(tl.int64) * tokens + start
    if length == 0:
        for first_query in range(0, asking, QUERIES):
            row = first_query + tl.arange(0, QUERIES)
            nothing = tl.zeros((QUERIES, HEAD_SIZE), d_q.dtype.element_ty)
            tl.store(d_queries + row[:, None] * out_stride + column, nothing, mask=(row < asking)[:, None])
    for first_key in range(0, length, KEYS):
        key = first_key + tl.arange(0, KEYS)
        real_key = (key < length)[:, None]
        place = keys + key[:, None] * key_stride + column
        k = tl.load(place, mask=real_key, other=0.0)
        v = tl.load(place + part_stride, mask=real_key, other=0.0)
        d_k = tl.zeros((KEYS, HEAD_SIZE), tl.float32)
        d_v = tl.zeros((KEYS, HEAD_SIZE), tl.float32)
        for first_query in range(0, asking, QUERIES):
            row = first_query + tl.arange(0, QUERIES)
            inside = row < asking
            real_row = inside[:, None]
            rows = tl.load(queries + row[:, None] * query_stride + column, mask=real_row, other=0.0)
            o = tl.load(outs + row[:, None] * out_stride + column, mask=real_row, other=0.0)
            d_o = tl.load(grads + row[:, None] * grad_token_stride + column, mask=real_row, other=0.0)
            # lse = inf makes p zero for rows past the end.
            row_lse = tl.load(lse + first_of_head + row, mask=inside, other=float("inf"))
            delta = tl.sum(o.to(tl.float32) * d_o.to(tl.float32), 1)
            scores = tl.dot(k, tl.trans(rows), input_precision="ieee")
            p = tl.math.exp2(scores * (SCALE * LOG2_E) - row_lse[None, :])
            # a padded key has score 0, which may be far above every real one: exp2 would overflow
            p = tl.where(real_key, p, 0.0)
            # Operands are rounded to the input dtype for the matrix units; the sums stay fp32.
            d_v = tl.dot(p.to(d_o.dtype), d_o, d_v, input_precision="ieee")
            d_p = tl.dot(v, tl.trans(d_o), input_precision="ieee")
            d_scores = (p * (d_p - delta[None, :])).to(rows.dtype)
            d_k = tl.dot(d_scores, rows, d_k, input_precision="ieee")
            d_rows = tl.dot(tl.trans(d_scores), k, input_precision="ieee")
            sums = d_q_sums + (first_of_head + row)[:, None] * HEAD_SIZE + column
            # The first keys start the sum; the last ones finish it and write dQ.
            if first_key > 0:
                d_rows += tl.load(sums, mask=real_row, other=0.0)
            if first_key + KEYS < length:
                tl.store(sums, d_rows, mask=real_row)
            else:
                target = d_queries + row[:, None] * out_stride + column
                tl.store(target, (d_rows * SCALE).to(d_q.dtype.element_ty), mask=real_row)
        d_k_place = d_keys + key[:, None] * (2 * out_stride) + column
        tl.store(d_k_place, (d_k * SCALE).to(d_kv.dtype.element_ty), mask=real_key)
        tl.store(d_k_place + out_stride, d_v.to(d_kv.dtype.element_ty), mask=real_key)
        # The next tile of keys reads partial sums that other threads of this program wrote.
        tl.debug_barrier()


@on_its_device
def forward(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs `cross_attention_forward`: returns out [Tq h e], lse [h Tq]. `tile` overrides the table's."""
    tokens, heads, head_size = q.shape
    out, lse = q.new_empty(tokens, heads, head_size), q.new_empty(heads, tokens, dtype=torch.float32)
    tile = tile or _tile_of(q, max_seqlen_q, backward=False)
    grid = (ceil_div(max_seqlen_q, tile.queries), heads, cu_seqlens_q.shape[0] - 1)
    strides = (*q.stride()[:2], *kv.stride()[:3])
    cross_attention_forward[grid](
        q, kv, cu_seqlens_q, cu_seqlens_k, out, lse, *strides, tokens,
        **_compiled_as(tile, head_size), **options(tile),
    )  # fmt: skip
    return out, lse


@on_its_device
def backward(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs `cross_attention_backward`: returns d_q [Tq h e] and d_kv [Tk 2 h e], contiguous."""
    tokens, heads, head_size = q.shape
    tile = tile or _tile_of(q, max_seqlen_q, backward=True)
    # offsets within a sequence are int32
    narrow = max(max_seqlen_q * grad.stride(0), heads * grad.stride(1)) < 2**31
    grad = grad if narrow and grad.stride(-1) == 1 else grad.contiguous()
    d_q, d_kv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, kv))
    one_tile = max_seqlen_k <= tile.keys  # then the scratch is not touched
    d_q_sums = lse if one_tile else q.new_empty(heads, tokens, head_size, dtype=torch.float32)
    strides = (*q.stride()[:2], *kv.stride()[:3], *grad.stride()[:2])
    cross_attention_backward[(heads, cu_seqlens_q.shape[0] - 1)](
        q, kv, out, grad, lse, cu_seqlens_q, cu_seqlens_k, d_q, d_kv, d_q_sums, *strides, tokens,
        **_compiled_as(tile, head_size), **options(tile),
    )  # fmt: skip
    return d_q, d_kv


def _tile_of(q: Tensor, max_queries: int, *, backward: bool) -> Tile:
    arch = architecture(q.device)
    return cross_tile_of(
        backward=backward, dtype=q.dtype, arch=arch, head_size=q.shape[2], max_queries=max_queries
    )


def _compiled_as(tile: Tile, head_size: int) -> dict[str, int | float]:
    return {
        "HEAD_SIZE": head_size,
        "SCALE": head_size**-0.5,
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
    }


def launches() -> tuple[Launch, ...]:
    """Lists every configuration once, under its first bucket's name: every dtype and head size."""
    found: dict[tuple, Launch] = {}
    dtypes = (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32))
    for arch, (name, dtype), head_size, most, backward_pass in product(
        ARCHITECTURES, dtypes, HEAD_SIZES, (CROSS_QUERIES, CROSS_QUERIES + 1), (False, True)
    ):
        way = "backward" if backward_pass else "forward"
        tile = cross_tile_of(
            backward=backward_pass, dtype=dtype, arch=arch, head_size=head_size, max_queries=most
        )
        short = most == CROSS_QUERIES
        launch = Launch(
            f"varlen_cross_attention.{way}.{name}.{head_size}.{most if short else 'long'}",
            cross_attention_backward if backward_pass else cross_attention_forward,
            _types(f"*{name}", backward_pass),
            _compiled_as(tile, head_size),
            tile.num_warps,
            tile.num_stages,
            arch,
            # one tile of queries reads every key once; many are taken to be as many as the keys
            from_memory=1.0 if short else from_memory(tile, 2**31, dtype.itemsize, backward_pass, False),
        )
        found.setdefault((arch, way, name, head_size, tile), launch)
    return tuple(found.values())


def _types(rows: str, backward_pass: bool) -> dict[str, str]:
    """Returns the arguments' types in the compiler's notation; `rows` is the type of a pointer to queries."""
    pointers = {"q": rows, "kv": rows, "cu_seqlens_q": "*i32", "cu_seqlens_k": "*i32"}
    pointers |= {"out": rows, "lse": "*fp32"}
    integers: tuple[str, ...] = ("query_stride", "query_head_stride", "key_stride")
    integers += ("part_stride", "key_head_stride", "tokens")
    if backward_pass:
        pointers |= {"grad": rows, "d_q": rows, "d_kv": rows, "d_q_sums": "*fp32"}
        integers += ("grad_token_stride", "grad_head_stride")
    return pointers | dict.fromkeys(integers, "i32")
