"""Runs a block of a transformer as one node of autograd: for a host that has less time than its GPU.

Where kernels run and biases fold, as on a GPU, flava_kernels/pre_norm_block.py computes what the block's
layers would, bit for bit, with less Python. Layers run wherever somebody may have changed what they do.

Autograd hands over a block's gradients in another order then, in which DeepSpeed fills its buckets. So all
ranks must choose alike: `layered` says how many blocks of a rank run their layers, and the ranks compare it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from flava_kernels import dispatch
from flava_kernels.pre_norm_block import BlockOptions, BlockWeights, pre_norm_block, takes
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from flava_ds.layers.fused import Branch, FoldingLinear, LinearGELU, ResidualLayerNorm

LAYERS = ResidualLayerNorm, FoldingLinear, FoldingLinear, ResidualLayerNorm, LinearGELU
"""In the order of BlockWeights."""


def layered(blocks: Iterable[nn.Module], device: torch.device) -> int:
    """Counts the blocks that run their layers, whatever the batch."""
    kernels = dispatch.implementation(device.type, None) == "triton" and not _has_any_global_hook()
    return sum(not kernels or _layers_of(block) is None for block in blocks)


def run_as_one_node(
    block: nn.Module,
    stream: Tensor,
    branch: Branch | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    equal_lengths: bool,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Computes what the `forward` of a transformer.Block does up to its `mlp_down`: stream and activations.

    None where that is for its layers: they run no kernels, or one is frozen, watched or of another kind.
    """
    if torch.compiler.is_compiling() or _has_any_global_hook():
        return None
    layers = _layers_of(block)
    if layers is None:
        return None
    # nn.Module finds attributes in Python, which would take as long as everything else here.
    named = [layer._parameters.get(name) for layer in layers for name in ("weight", "bias")]
    weights, own = BlockWeights(*named), cast(Any, block._modules["attention"])
    first, _, _, second, up = layers
    spans = max_seqlen, equal_lengths, own.causal
    options = BlockOptions(*spans, own.num_heads, first.eps, second.eps, up.activates)
    added, bias = (None, None) if branch is None else branch
    if not takes(stream, added, bias, cu_seqlens, options, weights):
        return None
    return pre_norm_block(stream, added, bias, cu_seqlens, rows, options, weights)


def _layers_of(block: Any) -> tuple[Any, ...] | None:
    """Returns a block's layers without `mlp_down`, or None if one of them has to run by itself."""
    own = block._modules
    attention = own["attention"]
    if not own["mlp_down"].folds or not block.is_plain():
        return None
    inner = attention._modules
    layers = own["attention_norm"], inner["qkv"], inner["output"], own["mlp_norm"], own["mlp_up"]
    folds = inner["qkv"].folds and inner["output"].folds
    plain = tuple(map(type, layers)) == LAYERS and folds and all(map(_is_untouched, (attention, *layers)))
    return layers if plain else None


def _is_untouched(module: nn.Module) -> bool:
    """Returns True if no hook waits for a module's calls or gradients, and nobody replaced its `forward`."""
    return not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or module._compiled_call_impl
        or "forward" in vars(module)
    )
