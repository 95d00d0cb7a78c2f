"""Runs a block of a transformer as one node of autograd: for a host that has less time than its GPU.

Where kernels run and biases fold, as on a GPU, flava_kernels/pre_norm_block.py computes what the block's
layers would, bit for bit, with less Python. Layers run wherever somebody may have changed what they do.
"""

from __future__ import annotations

from typing import Any

import torch
from flava_kernels.pre_norm_block import BlockOptions, BlockWeights, pre_norm_block, takes
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from flava_ds.layers.fused import Branch, FoldingLinear, GELULinear, LinearGELU, ResidualLayerNorm

LAYERS = ResidualLayerNorm, FoldingLinear, FoldingLinear, ResidualLayerNorm, LinearGELU, GELULinear
"""In the order of BlockWeights."""


def run_as_one_node(
    block: nn.Module,
    stream: Tensor,
    branch: Branch | None,
    cu_seqlens: Tensor,
    max_seqlen: int,
    equal_lengths: bool,
    rows: Tensor | None,
) -> tuple[Tensor, Branch] | None:
    """Computes what the `forward` of a transformer.Block with its own Attention does.

    None where that is for its layers: they run no kernels, or one is frozen, watched or of another kind.
    """
    # nn.Module finds attributes in Python, which would take as long as everything else here.
    own: Any = block._modules
    attention, up, down = own["attention"], own["mlp_up"], own["mlp_down"]
    if not down.folds or torch.compiler.is_compiling():
        return None
    inner: Any = attention._modules
    layers = own["attention_norm"], inner["qkv"], inner["output"], own["mlp_norm"], up, down
    untouched = all(map(_is_untouched, (attention, *layers))) and not _has_any_global_hook()
    if tuple(map(type, layers)) != LAYERS or not untouched:
        return None
    weights = BlockWeights(*[each for layer in layers for each in layer._parameters.values()])
    spans = max_seqlen, equal_lengths, attention.causal
    options = BlockOptions(*spans, attention.num_heads, layers[0].eps, not up.activates)
    branch_rows, bias = (None, None) if branch is None else branch
    if not takes(stream, branch_rows, cu_seqlens, options, weights):
        return None
    stream, added = pre_norm_block(stream, branch_rows, bias, cu_seqlens, rows, options, weights)
    return stream, Branch(added, down.bias)


def _is_untouched(module: nn.Module) -> bool:
    """Returns True if no hook waits for a module's calls or gradients, and nobody replaced its `forward`."""
    return not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
    )
