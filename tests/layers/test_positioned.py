"""Positions on queries and keys, against transformers' DETR, padded there and packed here."""

import pytest
import torch
from families.bert.bert_peers import randomize
from flava_kernels.dropout import row_keys
from told import largest

from flava_ds.batch import Packed
from flava_ds.families.unit.config import PositionedConfig
from flava_ds.layers.hidden_dropout import ACTIVATION, ATTENTION, CROSS, MLP, HiddenDropout
from flava_ds.layers.positioned import Positioned, PositionedTransformer, sine_positions

detr = pytest.importorskip("transformers.models.detr.modeling_detr")
WIDTH, LAYERS, LENGTHS, QUERIES = 32, 3, (7, 2, 5), 4
SHAPE = PositionedConfig(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=48
)
NAMES = {
    "attention_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "mlp_up": "mlp.fc1",
    "mlp_down": "mlp.fc2",
    "mlp_norm": "final_layer_norm",
    **{f"attention.{own}": f"self_attn.{own[0]}_proj" for own in ("query", "key", "value", "output")},
    **{
        f"cross_attention.{own}": f"encoder_attn.{own[0]}_proj" for own in ("query", "key", "value", "output")
    },
}


def pair(kind: str):
    """Ours and theirs with the same weights, and our parameters by their names."""
    from transformers import DetrConfig

    config = DetrConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        dropout=0.0,
        attn_implementation="eager",
        use_timm_backbone=False,
        backbone_config={"model_type": "resnet"},
        backbone=None,
    )
    ours = randomize(PositionedTransformer(SHAPE, crosses=kind == "Decoder"), std=0.3)
    theirs = getattr(detr, f"Detr{kind}")(config).eval()
    named = {}
    for name, own in ours.named_parameters():
        _, number, *part, last = name.split(".")
        named[f"layers.{number}.{NAMES['.'.join(part)]}.{last}"] = own
    missing = theirs.load_state_dict(named, strict=False)
    assert not missing.unexpected_keys and all("layers." not in key for key in missing.missing_keys)
    return ours, theirs, named


def packed(rows, lengths) -> Packed:
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return Packed(rows, bounds, max(lengths))


def padded(rows, lengths):
    """[T d] -> [b t d], and where it is real."""
    full = torch.nn.utils.rnn.pad_sequence(rows.split(list(lengths)), batch_first=True)
    return full, torch.arange(full.shape[1]) < torch.tensor(lengths)[:, None]


def check_gradients(ours_loss, theirs_loss, named, theirs, told):
    ours_loss.backward()
    theirs_loss.backward()
    for name, own in named.items():
        expected = theirs.get_parameter(name).grad
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(own.grad, expected, atol=3e-5 * scale, rtol=3e-5, msg=name)
        told.gradient(float((own.grad - expected).abs().max()) / scale)


def test_the_encoder_is_detrs(told):
    told.parity("unit", "DetrEncoder", torch.float32, 1e-5, 3e-5)
    ours, theirs, named = pair("Encoder")
    rows, positions, weight = torch.randn(3, sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(0))
    found = ours(Positioned(packed(rows, LENGTHS), positions))
    full, real = padded(rows, LENGTHS)
    expected = theirs(
        inputs_embeds=full,
        attention_mask=real.long(),
        spatial_position_embeddings=padded(positions, LENGTHS)[0],
    ).last_hidden_state[real]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    told.output(largest(found, expected))
    check_gradients((found * weight).sum(), (expected * weight).sum(), named, theirs, told)


def test_every_layer_of_the_decoder_is_detrs(told):
    """Queries of zeros with learned positions; of the memory some samples have less than others."""
    told.parity("unit", "DetrDecoder", torch.float32, 1e-5, 3e-5)
    ours, theirs, named = pair("Decoder")
    draw = torch.Generator().manual_seed(1)
    memory, positions = torch.randn(2, sum(LENGTHS), WIDTH, generator=draw)
    queries = torch.randn(QUERIES, WIDTH, generator=draw).repeat(len(LENGTHS), 1)
    weight = torch.randn(len(queries), WIDTH, generator=draw)
    asked = packed(torch.zeros_like(queries), (QUERIES,) * len(LENGTHS))
    found = ours(Positioned(asked, queries), Positioned(packed(memory, LENGTHS), positions))
    full, real = padded(memory, LENGTHS)
    given = {
        "inputs_embeds": torch.zeros(len(LENGTHS), QUERIES, WIDTH),
        "encoder_hidden_states": full,
        "encoder_attention_mask": real.long(),
        "spatial_position_embeddings": padded(positions, LENGTHS)[0],
        "object_queries_position_embeddings": queries.view(len(LENGTHS), QUERIES, WIDTH),
    }
    theirs.layernorm = torch.nn.Identity()
    layers = theirs.layers
    for count, own in enumerate(found.chunk(LAYERS), start=1):
        theirs.layers = layers[:count]
        expected = theirs(**given).last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
        told.output(largest(own, expected))
    check_gradients((own * weight).sum(), (expected * weight).sum(), named, theirs, told)


def test_sines_are_detrs():
    theirs = detr.DetrSinePositionEmbedding(8, normalize=True)
    expected = theirs(torch.Size([1, 3, 3, 5]), torch.device("cpu"), torch.float32)
    found = sine_positions((3, 5), 16, torch.device("cpu"))
    torch.testing.assert_close(found, expected[0].flatten(1).T, atol=1e-6, rtol=1e-6)


def test_positions_move_no_value():
    """With one key the output of attention does not depend on any position."""
    block = randomize(PositionedTransformer(SHAPE)).blocks[0].attention
    rows = packed(torch.randn(3, WIDTH), (1, 1, 1))
    one, other = (block(*[Positioned(rows, torch.randn(3, WIDTH))] * 2) for _ in range(2))
    torch.testing.assert_close(one, other)


def test_recomputed_activations_give_the_same_gradients():
    sequences = Positioned(packed(torch.randn(6, WIDTH), (4, 2)), torch.randn(6, WIDTH))
    found = []
    for again in (False, True):
        ours = randomize(PositionedTransformer(SHAPE))
        ours.activation_checkpointing = again
        ours(sequences).square().sum().backward()
        found.append([own.grad for own in ours.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stack_without_the_memory_that_it_needs_is_refused():
    sequences = Positioned(packed(torch.zeros(1, WIDTH), (1,)), torch.zeros(1, WIDTH))
    for crosses in (False, True):
        with pytest.raises(ValueError, match="need a memory"):
            PositionedTransformer(SHAPE, crosses=crosses)(sequences, None if crosses else sequences)


class Torchs(torch.nn.Dropout):
    """Torch's dropout in transformers' place, with the masks of ours: of rows of padded sequences."""

    def __init__(self, drops, place, lengths):
        super().__init__(0.0)
        self.drops, self.place, self.lengths = drops, place, lengths

    def forward(self, hidden):
        real = torch.arange(hidden.shape[1]) < torch.tensor(self.lengths)[:, None]
        return hidden.index_put((real,), self.drops(hidden[real], self.place))


def test_dropout_is_where_torch_has_it():
    """torch's own decoder layer, post-norm with ReLU, whose four dropouts are replaced by ours; positions are
    zero there. With activation checkpointing, too.
    """
    torch.manual_seed(0)
    ours = randomize(PositionedTransformer(SHAPE, crosses=True), std=0.3).train()
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    drops = HiddenDropout(row_keys(torch.tensor([5, 6, 7]), bounds, sum(LENGTHS), 3), 0.3)
    rows, memory = torch.randn(sum(LENGTHS), WIDTH), torch.randn(sum(LENGTHS), WIDTH)
    sequences = Positioned(packed(rows, LENGTHS), torch.zeros_like(rows))
    read = Positioned(packed(memory, LENGTHS), torch.zeros_like(memory))
    found = ours(sequences, read, drops).chunk(LAYERS)
    padded_memory, real = padded(memory, LENGTHS)
    hidden = padded(rows, LENGTHS)[0]
    for number, block in enumerate(ours.blocks, start=1):
        theirs = torch.nn.TransformerDecoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True).train()
        parts = block.attention, block.cross_attention
        for name, part in zip(("self_attn", "multihead_attn"), parts, strict=True):
            attention = getattr(theirs, name)
            attention.in_proj_weight.data = torch.cat([part.query.weight, part.key.weight, part.value.weight])
            attention.in_proj_bias.data = torch.cat([part.query.bias, part.key.bias, part.value.bias])
            attention.out_proj.load_state_dict(part.output.state_dict())
        layers = {"norm1": "attention_norm", "norm2": "cross_norm", "norm3": "mlp_norm"}
        for name, own in {**layers, "linear1": "mlp_up", "linear2": "mlp_down"}.items():
            getattr(theirs, name).load_state_dict(getattr(block, own).state_dict())
        places = {"dropout1": ATTENTION, "dropout2": CROSS, "dropout": ACTIVATION, "dropout3": MLP}
        for name, place in places.items():
            setattr(theirs, name, Torchs(drops.of(number), place, LENGTHS))
        masks = {"tgt_key_padding_mask": ~real, "memory_key_padding_mask": ~real}
        hidden = theirs(hidden, padded_memory, **masks)
        torch.testing.assert_close(found[number - 1], hidden[real], atol=2e-5, rtol=2e-5)
    ours.activation_checkpointing = True
    assert torch.equal(ours(sequences, read, drops), torch.cat(found))
    assert not torch.equal(ours(sequences, read), torch.cat(found))
