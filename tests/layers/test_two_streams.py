"""Two streams against torch's attention and transformers' BERT layers of the same weights, and their work."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
import torch.nn.functional as F
from told import largest
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.layers.two_streams import STREAMS, CoAttention, SharedExchange, TwoStreams
from flava_ds.layers.work import cross_attention_flops, encoder_flops

TEXT = EncoderConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
REGIONS = EncoderConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
WIDTH, HEADS = 16, 4
OF_TEXT, OF_REGIONS = (4, 1, 6), (2, 7, 3)
BOTH = dict.fromkeys(STREAMS)


def packed(lengths, width) -> Packed:
    hidden = torch.randn(sum(lengths), width, dtype=torch.float64)
    return Packed(hidden.requires_grad_(), torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))


def randomized(streams: TwoStreams) -> TwoStreams:
    for parameter in streams.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return streams.double()


def co_attending() -> TwoStreams:
    torch.manual_seed(0)
    exchanges = [CoAttention(TEXT, REGIONS, HEADS, WIDTH) for _ in range(2)]
    return randomized(TwoStreams(TEXT, REGIONS, exchanges))


def padded(own: Packed, lengths) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(own.hidden.split(lengths), batch_first=True)


def bert_layer(transformers, block, shape):
    """transformers' layer with a block's weights."""
    config = transformers.BertConfig(
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=1,
    )
    config._attn_implementation = "eager"
    layer = transformers.models.bert.modeling_bert.BertLayer(config).double().eval()
    own, qkv = layer.attention.self, block.attention.qkv
    parts = (own.query, own.key, own.value)
    for part, weight, bias in zip(parts, qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = weight.data, bias.data
    for theirs, ours in (
        (layer.attention.output.dense, block.attention.output),
        (layer.attention.output.LayerNorm, block.attention_norm),
        (layer.intermediate.dense, block.mlp_up),
        (layer.output.dense, block.mlp_down),
        (layer.output.LayerNorm, block.mlp_norm),
    ):
        theirs.load_state_dict(ours.state_dict())
    return layer


def co_attended(layer, own, other, absent):
    """What torch's attention makes of padded states: its query projection takes its own width only, so ours
    come projected.
    """
    attention = nn.MultiheadAttention(
        WIDTH, HEADS, kdim=other.shape[-1], vdim=other.shape[-1], batch_first=True
    ).double()
    parts = layer.attention
    attention.q_proj_weight.data = attention.out_proj.weight.data = torch.eye(WIDTH, dtype=torch.float64)
    attention.k_proj_weight.data, attention.v_proj_weight.data = parts.key_value.weight.data.chunk(2)
    attention.in_proj_bias.data = torch.cat([torch.zeros(WIDTH), parts.key_value.bias.data])
    attention.out_proj.bias.data.zero_()
    context, _ = attention(parts.query(own), other, other, key_padding_mask=absent)
    d, eps = own.shape[-1], TEXT.layer_norm_eps
    norm = layer.attention_norm
    stream = F.layer_norm(own + parts.output(context), (d,), norm.weight, norm.bias, eps)
    inner = F.gelu(F.linear(stream, layer.mlp_up.weight, layer.mlp_up.bias))
    added = F.linear(inner, layer.mlp_down.weight, layer.mlp_down.bias)
    return F.layer_norm(stream + added, (d,), layer.mlp_norm.weight, layer.mlp_norm.bias, eps)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_torch_and_transformers_agree(checkpointing, told):
    """States of both streams and gradients of both inputs; theirs are padded."""
    transformers = pytest.importorskip("transformers")
    ours = co_attending()
    ours.activation_checkpointing = checkpointing
    texts, regions = packed(OF_TEXT, 24), packed(OF_REGIONS, 32)
    found = ours(texts, regions, BOTH)

    hidden = {"text": padded(texts, OF_TEXT), "regions": padded(regions, OF_REGIONS)}
    lengths = {"text": OF_TEXT, "regions": OF_REGIONS}
    shapes = {"text": TEXT, "regions": REGIONS}
    absent = {s: torch.arange(hidden[s].shape[1]) >= torch.tensor(lengths[s])[:, None] for s in STREAMS}
    masks = {
        s: torch.zeros(3, 1, 1, absent[s].shape[1]).masked_fill(absent[s][:, None, None], -1e30).double()
        for s in STREAMS
    }

    def layer(block, stream):
        out = bert_layer(transformers, block, shapes[stream])(hidden[stream], attention_mask=masks[stream])
        return out[0] if isinstance(out, tuple) else out

    for stream in STREAMS:
        for block in getattr(ours, stream).blocks:
            hidden[stream] = layer(block, stream)
    for one in ours.rounds:
        halves = one.exchange
        hidden = {
            "text": co_attended(halves.text, hidden["text"], hidden["regions"], absent["regions"]),
            "regions": co_attended(halves.regions, hidden["regions"], hidden["text"], absent["text"]),
        }
        hidden = {stream: layer(getattr(one, stream), stream) for stream in STREAMS}
    inputs, weights = (texts.hidden, regions.hidden), {s: torch.randn_like(found[s]) for s in STREAMS}
    expected = {s: hidden[s][~absent[s]] for s in STREAMS}
    mine, theirs = (
        torch.autograd.grad(sum((own[s] * weights[s]).sum() for s in STREAMS), inputs)
        for own in (found, expected)
    )
    # assert_close allows this of each element's own size
    told.parity("vilbert", "MultiheadAttention, BertLayer", torch.float64, 1e-7, 1e-7)
    for stream in STREAMS:
        torch.testing.assert_close(found[stream], expected[stream])
        told.output(largest(found[stream], expected[stream]))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
        told.gradient(largest(one, other))


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_not_read_is_not_computed(shared):
    """Rows and streams that are read equal those of the whole, and `parameters_of` names what they train."""
    streams = co_attending()
    if shared:
        torch.manual_seed(0)
        regions = dataclasses.replace(TEXT, num_hidden_layers=1)
        streams = randomized(TwoStreams(TEXT, regions, [SharedExchange(TEXT) for _ in range(2)]))
    width = 24 if shared else 32
    inputs = packed(OF_TEXT, 24), packed(OF_REGIONS, width)
    whole, rows = streams(*inputs, BOTH), torch.tensor([0, 3, 4, 9])
    for stream in STREAMS:
        streams.zero_grad()
        found = streams(*inputs, {stream: rows})
        assert found.keys() == {stream}
        torch.testing.assert_close(found[stream], whole[stream][rows])
        found[stream].square().sum().backward()
        trained = {name for name, own in streams.named_parameters() if own.grad is not None}
        assert trained == streams.parameters_of([stream])
    assert streams.parameters_of(STREAMS) == {name for name, _ in streams.named_parameters()}
    assert len(streams.parameters_of(["text"])) < len(streams.parameters_of(STREAMS))


def test_work_is_what_torch_counts():
    """On equal lengths, where nothing is padded."""
    of_text, of_regions = (6, 6, 6), (5, 5, 5)
    inputs = packed(of_text, 24), packed(of_regions, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        co_attending()(*inputs, BOTH)
    deeper = {
        s: dataclasses.replace(own, num_hidden_layers=own.num_hidden_layers + 2)
        for s, own in (("text", TEXT), ("regions", REGIONS))
    }
    expected = encoder_flops(deeper["text"], of_text) + encoder_flops(deeper["regions"], of_regions)
    for own, other, lengths, memory in (
        (TEXT, REGIONS, of_text, of_regions),
        (REGIONS, TEXT, of_regions, of_text),
    ):
        expected += 2 * 2 * 2 * sum(lengths) * own.hidden_size * own.intermediate_size
        expected += cross_attention_flops(
            own, lengths, memory, layers=2, memory_size=other.hidden_size, width=WIDTH
        )
    assert expected == counter.get_total_flops()
