"""torch's pre-norm transformer layers with the weights of our blocks: width 24, 3 heads, MLP of 40."""

from __future__ import annotations

import torch
from torch import nn

ENCODER = {
    "attention_norm": "norm1.",
    "attention.qkv": "self_attn.in_proj_",
    "attention.output": "self_attn.out_proj.",
    "mlp_norm": "norm2.",
    "mlp_up": "linear1.",
    "mlp_down": "linear2.",
}
DECODER = ENCODER | {
    "cross_norm": "norm2.",
    "cross_attention.output": "multihead_attn.out_proj.",
    "mlp_norm": "norm3.",
}
SIZES = {"d_model": 24, "nhead": 3, "dim_feedforward": 40, "dropout": 0.0, "activation": "gelu"}
HOW = {"layer_norm_eps": 1e-6, "batch_first": True, "norm_first": True}


def encoder_layer(block: nn.Module) -> nn.Module:
    """torch's encoder layer with a block's weights, in fp64."""
    return filled(nn.TransformerEncoderLayer(**SIZES, **HOW), dict(block.named_parameters()), ENCODER)


def decoder_layer(block: nn.Module) -> nn.Module:
    """torch's decoder layer with a block's weights, in fp64."""
    theirs, own = nn.TransformerDecoderLayer(**SIZES, **HOW), dict(block.named_parameters())
    for kind in ("weight", "bias"):
        parts = [own.pop(f"cross_attention.{name}.{kind}").detach() for name in ("query", "key_value")]
        theirs.get_parameter(f"multihead_attn.in_proj_{kind}").data = torch.cat(parts)
    return filled(theirs, own, DECODER)


def filled(theirs: nn.Module, own: dict, names: dict[str, str]) -> nn.Module:
    """Hands over the parameters by name."""
    for name, tensor in own.items():
        part, _, kind = name.rpartition(".")
        theirs.get_parameter(f"{names[part]}{kind}").data = tensor.detach()
    return theirs.double()
