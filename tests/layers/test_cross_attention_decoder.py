"""The decoder's blocks against torch's TransformerDecoderLayer with the same weights, and their work."""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from layers.torch_layers import decoder_layer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.layers.cross_attention import DecoderBlock
from flava_ds.layers.transformer import Transformer
from flava_ds.layers.work import cross_attention_flops, encoder_flops

SHAPE = EncoderConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-6
)


def decoder() -> Transformer:
    return Transformer(SHAPE, causal=True, block=DecoderBlock).double()


def packed(lengths) -> Packed:
    hidden = torch.randn(sum(lengths), 24, dtype=torch.float64)
    return Packed(hidden.requires_grad_(), torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_torch_agrees(checkpointing):
    """States, and gradients of input and memory; torch's sequences are padded."""
    torch.manual_seed(0)
    ours = decoder()
    ours.activation_checkpointing = ours.checkpoint_sums = checkpointing
    for parameter in ours.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    of_text, of_memory = (4, 1, 6), (2, 7, 3)
    texts, memory = packed(of_text), packed(of_memory)
    found = ours(texts, memory=memory)

    hidden, seen = (
        nn.utils.rnn.pad_sequence(own.hidden.split(lengths), batch_first=True)
        for own, lengths in ((texts, of_text), (memory, of_memory))
    )
    absent = torch.arange(7) >= torch.tensor(of_memory)[:, None]
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for block in ours.blocks:
        hidden = decoder_layer(block)(hidden, seen, tgt_mask=causal, memory_key_padding_mask=absent)
    expected = torch.cat([own[:length] for own, length in zip(hidden, of_text, strict=True)])
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    inputs = (texts.hidden, memory.hidden)
    mine, theirs = (torch.autograd.grad((own * weights).sum(), inputs) for own in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_work_is_what_torch_counts():
    """On equal lengths, where nothing is padded; torch counts both halves of causal scores."""
    lengths, of_memory = (6, 6, 6), (5, 5, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder()(packed(lengths), memory=packed(of_memory))
    unseen = 2 * 4 * 24 * sum(n * (n - 1) // 2 for n in lengths)
    counted = counter.get_total_flops()
    crossed = cross_attention_flops(SHAPE, lengths, of_memory)
    assert encoder_flops(SHAPE, lengths, causal=True) + crossed in (counted, counted - unseen)
    assert crossed == cross_attention_flops(SHAPE, lengths, 5)


def test_what_its_blocks_cannot_do_is_said():
    texts = packed((4, 2))
    with pytest.raises(ValueError, match="needs `memory`"):
        decoder()(texts)
    with pytest.raises(ValueError, match="finishes all rows"):
        decoder()(texts, memory=packed((1, 1)), rows=torch.tensor([0]))
