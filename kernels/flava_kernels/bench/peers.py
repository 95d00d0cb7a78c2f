"""Implementations to compare with: torch's own, and those of installed libraries.

A peer takes an operator's arguments and returns its differentiable results, or says why it cannot.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from flava_kernels.linear_cross_entropy import IGNORE_INDEX
from flava_kernels.op import Op

Call = Callable[..., Any]
OURS = "flava_kernels"


class UnavailableError(Exception):
    """A peer that is not installed, or does not support this device; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One implementation.

    `build` returns the call for an operator on a device type, or raises UnavailableError. `bytes_needed`
    estimates a call's memory from its arguments. With `alone`, it computes what a single rank would and does
    not support several; with `compiles`, a first call may take longer than others.
    """

    name: str
    build: Callable[[Op, str], Call]
    bytes_needed: Callable[[dict[str, Any]], int] = lambda inputs: 0
    alone: bool = False
    compiles: bool = False


def peers(op: str) -> tuple[Peer, ...]:
    """Returns the implementations of an operator, ours first."""
    needed = WHOLE_MATRIX.get(op, lambda inputs: 0)
    ours = Peer(OURS, lambda op, device: op.function)
    eager = Peer("torch eager", lambda op, device: op.definition, needed, alone=True)
    compiled = Peer("torch.compile", _compiled, needed, alone=True, compiles=True)
    return (ours, eager, compiled, *PEERS.get(op, ()))


def library(name: str, *, gpu_only: str | None = None) -> Any:
    """Imports an optional module.

    Raises UnavailableError if it is missing or, for one that supports only GPUs, there is none.
    """
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a library may fail in any way without its device
        raise UnavailableError(
            f"{name} cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if gpu_only is not None and gpu_only != "cuda":
        raise UnavailableError(f"{name} runs on GPUs only")
    return module


@functools.cache
def _compiled_for_all_shapes(definition: Call) -> Call:
    return torch.compile(definition, dynamic=True)


def _compiled(op: Op, device: str) -> Call:
    """Compiles once for all shapes on a CPU, where compiling is slow; on a GPU once per workload.

    Earlier compilations are dropped then: after eight shapes of one function, torch would silently run it in
    eager mode.
    """
    if device == "cpu":
        return _compiled_for_all_shapes(op.definition)
    torch.compiler.reset()
    return torch.compile(op.definition, dynamic=False)


# Attention


def _sdpa(backend: str) -> Peer:
    """Runs PyTorch's attention with a fixed backend.

    Equal lengths are a view; others are padded in every call and masked, unless attention is causal: then no
    real query attends to padding, and the backends take no mask with `is_causal`.
    """

    def build(op: Op, device: str) -> Call:
        attention = importlib.import_module("torch.nn.attention")
        chosen = getattr(attention.SDPBackend, backend)

        def call(
            qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, causal: bool
        ) -> Tensor:
            batch, (tokens, _, heads, head_size) = cu_seqlens.shape[0] - 1, qkv.shape
            mask = slots = None
            if equal_lengths:
                padded = qkv.view(batch, max_seqlen, 3, heads, head_size)
            else:
                cu = cu_seqlens.long()
                row = torch.arange(tokens, device=qkv.device)
                sequence = torch.bucketize(row, cu[1:], right=True)
                slots = row - cu[sequence] + sequence * max_seqlen
                padded = (
                    qkv.new_zeros(batch * max_seqlen, 3, heads, head_size)
                    .index_copy(0, slots, qkv)
                    .view(batch, max_seqlen, 3, heads, head_size)
                )
                mask = (
                    None
                    if causal
                    else (torch.arange(max_seqlen, device=qkv.device) < cu.diff()[:, None])[:, None, None, :]
                )
            with attention.sdpa_kernel(chosen):
                q, k, v = padded.permute(2, 0, 3, 1, 4)
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
            out = out.transpose(1, 2).reshape(batch * max_seqlen, heads, head_size)
            return out if slots is None else out.index_select(0, slots)

        return call

    return Peer(f"SDPA {backend.removesuffix('_ATTENTION').lower()}", build)


def _varlen(op: Op, device: str) -> Call:
    varlen_attn = library("torch.nn.attention.varlen", gpu_only=device).varlen_attn

    def call(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, causal: bool) -> Tensor:
        window = {"window_size": (-1, 0)} if causal else {}
        return varlen_attn(*qkv.unbind(1), cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **window)

    return call


def _flash(op: Op, device: str) -> Call:
    flash = library("flash_attn", gpu_only=device).flash_attn_varlen_qkvpacked_func
    return lambda qkv, cu_seqlens, max_seqlen, equal_lengths, causal: flash(
        qkv, cu_seqlens, max_seqlen, causal=causal
    )


def _varlen_cross(op: Op, device: str) -> Call:
    varlen_attn = library("torch.nn.attention.varlen", gpu_only=device).varlen_attn
    return _without_promise(lambda q, kv, *bounds: varlen_attn(q, *kv.unbind(1), *bounds))


def _flash_cross(op: Op, device: str) -> Call:
    return _without_promise(library("flash_attn", gpu_only=device).flash_attn_varlen_kvpacked_func)


def _without_promise(attend: Call) -> Call:
    """Gives the arguments of cross-attention by position, without `equal_keys`."""

    def call(
        q: Tensor,
        kv: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        equal_keys: bool,
    ) -> Tensor:
        return attend(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    return call


# LayerNorm


def _behind_addition(op: Op, norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Call:
    """Returns the norm itself, or the norm of a sum together with the sum."""

    def call(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        y = norm(total, weight, bias, eps)
        return y if residual is None else (y, total)

    return call


def _liger_layer_norm(op: Op, device: str) -> Call:
    function = library("liger_kernel.ops.layer_norm", gpu_only=device).LigerLayerNormFunction
    return _behind_addition(op, function.apply)


def _flash_layer_norm(op: Op, device: str) -> Call:
    """flash-attention's Triton kernel, which adds the residual itself."""
    norm = library("flash_attn.ops.triton.layer_norm", gpu_only=device).layer_norm_fn

    def call(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return norm(x, weight, bias, residual=residual, eps=eps, prenorm=residual is not None)

    return call


def _apex_layer_norm(op: Op, device: str) -> Call:
    """apex's kernel, which reads parameters in the dtype of its result; its form for fp32 ones gives fp32."""
    norm = library("apex.normalization.fused_layer_norm", gpu_only=device).fused_layer_norm_affine
    return _behind_addition(
        op, lambda x, weight, bias, eps: norm(x, weight.to(x.dtype), bias.to(x.dtype), x.shape[-1:], eps)
    )


# Linear cross-entropy


def _torch_linear_cross_entropy(chunked: bool) -> Peer:
    def build(op: Op, device: str) -> Call:
        if not hasattr(F, "linear_cross_entropy"):
            raise UnavailableError(f"torch {torch.__version__} has no linear_cross_entropy")
        options: dict[str, Any] = {"options": torch.nn.LinearCrossEntropyOptions()} if chunked else {}

        def call(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
            return F.linear_cross_entropy(
                hidden, weight, labels, linear_bias=bias, reduction="sum", **options
            )

        return call

    needed = (lambda inputs: 0) if chunked else WHOLE_MATRIX["linear_cross_entropy"]
    return Peer("F.linear_cross_entropy" + (" chunked" if chunked else ""), build, needed)


def _liger_linear_cross_entropy(op: Op, device: str) -> Call:
    function = library(
        "liger_kernel.ops.fused_linear_cross_entropy", gpu_only=device
    ).LigerFusedLinearCrossEntropyFunction

    def call(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        return function.apply(hidden, weight, labels, bias, None, IGNORE_INDEX, 0.0, 0.0, "sum")[0]

    return call


# Contrastive loss


def clip_loss(image: Tensor, text: Tensor, log_scale: Tensor, row_mask: Tensor) -> Tensor:
    """open_clip's ClipLoss(local_loss=True, gather_with_grad=True) from its formula; summed, unmasked."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    image_all, text_all = (torch.cat(all_gather(x)) if world > 1 else x for x in (image, text))
    labels = torch.arange(image.shape[0], device=image.device) + rank * image.shape[0]
    image_logits, text_logits = log_scale.exp() * image @ text_all.T, log_scale.exp() * text @ image_all.T
    return (
        F.cross_entropy(image_logits.float(), labels, reduction="sum")
        + F.cross_entropy(text_logits.float(), labels, reduction="sum")
    ) / 2


def _inf_cl(op: Op, device: str) -> Call:
    cal_inf_loss = library("inf_cl", gpu_only=device).cal_inf_loss

    def call(image: Tensor, text: Tensor, log_scale: Tensor, row_mask: Tensor) -> Tensor:
        scale = log_scale.exp()
        return (
            image.shape[0]
            * (cal_inf_loss(image, text, scale=scale) + cal_inf_loss(text, image, scale=scale))
            / 2
        )

    return call


def siglip_loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor, text_mask: Tensor) -> Tensor:
    """open_clip's SigLipLoss(dist_impl="gather") from its formula; summed, unmasked."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    text_all = torch.cat(all_gather(text)) if world > 1 else text
    logits = log_scale.exp() * image @ text_all.T + bias
    labels = -torch.ones_like(logits)
    labels.diagonal(rank * image.shape[0]).fill_(1)
    return -F.logsigmoid(labels * logits).sum()


def _bytes_of_clip_loss(inputs: dict[str, Any]) -> int:
    world = dist.get_world_size() if dist.is_initialized() else 1
    return 4 * 4 * inputs["image"].shape[0] ** 2 * world


WHOLE_MATRIX: dict[str, Callable[[dict[str, Any]], int]] = {
    "info_nce": lambda inputs: 5 * 4 * inputs["image"].shape[0] ** 2,
    "sigmoid_loss": lambda inputs: 5 * 4 * inputs["image"].shape[0] ** 2,
    "linear_cross_entropy": lambda inputs: 4 * 4 * inputs["labels"].shape[0] * inputs["weight"].shape[0],
}
"""fp32 copies of the full logits matrix that an implementation holds at a time."""

LAYER_NORMS = (
    Peer("Liger", _liger_layer_norm),
    Peer("flash-attn's Triton", _flash_layer_norm),
    Peer("apex", _apex_layer_norm),
)
PEERS: dict[str, tuple[Peer, ...]] = {
    "varlen_attention": (
        *(_sdpa(backend) for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")),
        Peer("torch varlen_attn", _varlen),
        Peer("flash-attn", _flash),
    ),
    "varlen_cross_attention": (Peer("torch varlen_attn", _varlen_cross), Peer("flash-attn", _flash_cross)),
    "layer_norm": LAYER_NORMS,
    "add_layer_norm": LAYER_NORMS,
    "linear_cross_entropy": (
        _torch_linear_cross_entropy(False),
        _torch_linear_cross_entropy(True),
        Peer("Liger", _liger_linear_cross_entropy),
    ),
    "info_nce": (
        Peer("open_clip's ClipLoss", lambda op, device: clip_loss, _bytes_of_clip_loss),
        Peer("Inf-CL", _inf_cl),
    ),
    "sigmoid_loss": (Peer("open_clip's SigLipLoss", lambda op, device: siglip_loss, _bytes_of_clip_loss),),
}
"""Peers of single operators, besides ours, plain torch and its compiler."""
