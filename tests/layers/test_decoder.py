"""The decoder against torch's TransformerDecoderLayer with the same weights, and its work."""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.layers.decoder import Decoder, decoder_flops

SHAPE = EncoderConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-6
)
NAMES = {
    "attention_norm": "norm1",
    "attention.qkv": "self_attn.in_proj_",
    "attention.output": "self_attn.out_proj",
    "cross_norm": "norm2",
    "cross_attention.output": "multihead_attn.out_proj",
    "mlp_norm": "norm3",
    "mlp_up": "linear1",
    "mlp_down": "linear2",
}


def their_name(ours: str) -> str:
    part, _, kind = ours.rpartition(".")
    theirs = NAMES[part]
    return f"{theirs}{kind}" if theirs.endswith("_") else f"{theirs}.{kind}"


def their_layer(block) -> nn.Module:
    """torch's pre-norm layer with a block's weights."""
    theirs = nn.TransformerDecoderLayer(24, 3, 40, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    own = dict(block.named_parameters())
    for kind in ("weight", "bias"):
        parts = (own.pop(f"cross_attention.{name}.{kind}") for name in ("query", "kv"))
        own_projection = torch.cat(list(parts)).detach()
        theirs.get_parameter(f"multihead_attn.in_proj_{kind}").data = own_projection
    for name, tensor in own.items():
        theirs.get_parameter(their_name(name)).data = tensor.detach()
    return theirs.double()


def packed(lengths, scale: float = 1.0) -> Packed:
    hidden = scale * torch.randn(sum(lengths), 24, dtype=torch.float64)
    return Packed(hidden.requires_grad_(), torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_torch_agrees(checkpointing):
    """States, and gradients of input and memory; torch's sequences are padded."""
    torch.manual_seed(0)
    decoder = Decoder(SHAPE).double()
    decoder.activation_checkpointing = decoder.checkpoint_sums = checkpointing
    for parameter in decoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    of_text, of_memory = (4, 1, 6), (2, 7, 3)
    texts, memory = packed(of_text), packed(of_memory)
    found = decoder.decode(texts, memory)

    hidden, seen = (
        nn.utils.rnn.pad_sequence(own.hidden.split(lengths), batch_first=True)
        for own, lengths in ((texts, of_text), (memory, of_memory))
    )
    absent = torch.arange(7) >= torch.tensor(of_memory)[:, None]
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for block in decoder.blocks:
        hidden = their_layer(block)(hidden, seen, tgt_mask=causal, memory_key_padding_mask=absent)
    expected = torch.cat([own[:length] for own, length in zip(hidden, of_text, strict=True)])
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    inputs = (texts.hidden, memory.hidden)
    ours, theirs = (torch.autograd.grad((own * weights).sum(), inputs) for own in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_work_is_what_torch_counts():
    """On equal lengths, where nothing is padded; torch counts both halves of causal scores."""
    decoder, lengths, of_memory = Decoder(SHAPE).double(), (6, 6, 6), (5, 5, 5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        decoder.decode(packed(lengths), packed(of_memory))
    unseen = 2 * 4 * 24 * sum(n * (n - 1) // 2 for n in lengths)
    counted = counter.get_total_flops()
    assert decoder_flops(SHAPE, lengths, of_memory) in (counted, counted - unseen)
