"""Checks of kernels below their operators, for tests and for planted bugs. They run the kernels, so
FLAVA_KERNELS is not asked.
"""

from __future__ import annotations

import op_checks
import torch


def gelu_backward_of_given_z(dtype: torch.dtype) -> None:
    """Asserts that dz is rounded once and that db is an fp32 sum of what is not rounded, in every dtype.

    Within the operator the rounding of z and of the products would hide that.
    """
    from flava_kernels import linear_gelu
    from flava_kernels.triton_ops import linear_gelu as kernels

    torch.manual_seed(0)
    grad, z = torch.randn(37, 70).to(dtype), torch.randn(37, 70).to(dtype)
    d_z, d_bias = kernels.backward(grad, z)
    exact, _ = linear_gelu.backward_reference(grad.double(), z.double())
    assert d_bias.dtype == torch.float32
    assert (
        op_checks.relative_error(d_z, exact)
        < {torch.float32: 2e-7, torch.float16: 5e-4, torch.bfloat16: 3.5e-3}[dtype]
    )
    assert op_checks.relative_error(d_bias, exact.sum(0)) < 1e-6


def cross_entropy_of_given_logits(dtype: torch.dtype) -> None:
    """Asserts that losses are exact given the logits: the product is rounded to the rows' dtype before the
    kernel sees it, then everything is fp32.
    """
    from flava_kernels.triton_ops import linear_cross_entropy as kernels

    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((9, 12), (4200, 12), (4200,)))
    labels = torch.randint(4200, (9,))
    losses, _, _ = kernels.forward(hidden, weight, bias, labels, False)
    exact = torch.nn.functional.cross_entropy(
        (hidden @ weight.T).double() + bias.double(), labels, reduction="none"
    )
    assert float((losses.double() - exact).abs().max()) < 5e-6


def causal_attention_of_any_tile(dtype: torch.dtype) -> None:
    """Asserts that causal attention visits no tile that is masked as a whole, whatever a tile's sides.

    What it must not read is NaN, which a mask would not stop: 0 * NaN is NaN. Forward these are the tokens
    behind a tile of queries; backward the queries before a tile of keys, with their outputs and gradients.
    Neither may change what the rest is.
    """
    from flava_kernels.cases.packing import cu_seqlens_of
    from flava_kernels.triton_ops import attention as kernels
    from flava_kernels.triton_ops.attention_tiles import Tile

    torch.manual_seed(0)
    lengths, edge, longest = (7, 100), 32, 200
    cu_seqlens, behind = cu_seqlens_of(lengths), lengths[0] + edge
    qkv, grad = torch.randn(sum(lengths), 3, 1, 32).to(dtype), torch.randn(sum(lengths), 1, 32).to(dtype)
    for sides in ((16, 16), (16, 32), (32, 16), (32, 32)):
        tile = Tile(*sides, 4, 1)
        out, lse = kernels.forward(qkv, cu_seqlens, longest, True, tile)
        bias = qkv.new_empty(3 * 32)
        d_qkv, d_bias = kernels.backward(grad, qkv, out, lse, cu_seqlens, longest, True, bias, tile)
        assert all(bool(found.isfinite().all()) for found in (out, d_qkv, d_bias))
        unread = qkv.clone()
        unread[behind:] = torch.nan
        before, _ = kernels.forward(unread, cu_seqlens, longest, True, tile)
        assert torch.equal(before[:behind], out[:behind]), f"forward, tiles of {sides}"
        unread, out_unread, lse_unread, grad_unread = (value.clone() for value in (qkv, out, lse, grad))
        for rows in (unread[:, 0], out_unread, lse_unread.T, grad_unread):
            rows[lengths[0] : behind] = torch.nan
        d_behind, _ = kernels.backward(
            grad_unread, unread, out_unread, lse_unread, cu_seqlens, longest, True, bias, tile
        )
        assert torch.equal(d_behind[behind:], d_qkv[behind:]), f"backward, tiles of {sides}"


def sigmoid_loss_of_the_second_rank(dtype: torch.dtype) -> None:
    """Asserts that rows find their own columns behind those of the rank before."""
    from flava_kernels.cases.sigmoid_loss import features
    from flava_kernels.sigmoid_loss import forward_reference
    from flava_kernels.triton_ops import sigmoid_loss as kernels

    draw = torch.Generator().manual_seed(0)
    drawn = features(draw, rows=12, width=8, scale=10.0, matched=0.6, bias=-3.0)
    image, text = drawn["image"].to(dtype), drawn["text"].to(dtype)
    rest = drawn["log_scale"].exp(), drawn["bias"], drawn["text_mask"]
    found = kernels.forward(image[6:], text, *(value.float() for value in rest), 6, [True] * 2)
    exact = forward_reference(image[6:].double(), text.double(), *rest, 6, [True] * 2)
    for ours, theirs in zip(found, exact, strict=True):
        assert op_checks.relative_error(ours, theirs) < {torch.float32: 2e-6}.get(dtype, 1e-2)
