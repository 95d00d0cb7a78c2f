"""Rows that nobody reads are not finished, and nothing else changes."""

import pytest
import torch
from sample_batches import denominators, make_batch, tiny_config

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind, View
from flava_ds.layers.transformer import Block, Transformer


@pytest.mark.parametrize("kind", list(Kind))
def test_keeping_only_the_rows_that_are_read_changes_no_loss_and_no_gradient(kind):
    config = tiny_config()
    module, batch = build_task(config).double(), make_batch(kind, config, size=6, mismatched=(1, 4))
    results = []
    for whole in (False, True):
        module.zero_grad()
        if whole:
            active = module.active(kind)
            encoded = module.model.encode(batch, frozenset().union(*(own.needs for own in active.values())))
            losses = {}
            for name, own in active.items():
                rows = own.reads(module.model, batch)
                losses[name] = own(
                    module.model, {view: encoded[view].rows(rows[view]) for view in rows}, batch
                )
        else:
            losses = module.losses(batch)
        sum(module.weighted(losses, denominators(module, batch)).values()).backward()
        results.append(
            (
                {name: loss.sum.detach() for name, loss in losses.items()},
                {n: p.grad for n, p in module.named_parameters() if p.grad is not None},
            )
        )
    (kept_losses, kept_gradients), (whole_losses, whole_gradients) = results
    torch.testing.assert_close(kept_losses, whole_losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kept_gradients, whole_gradients, rtol=1e-10, atol=1e-12)


def test_a_view_encoded_for_some_rows_says_so():
    config = tiny_config()
    module, batch = build_task(config), make_batch(Kind.IMAGE, config)
    encoded = module.model.encode(batch, {View.IMAGE_MASKED}, {View.IMAGE_MASKED: torch.tensor([1, 3, 12])})[
        View.IMAGE_MASKED
    ]
    whole = module.model.encode(batch, {View.IMAGE_MASKED})[View.IMAGE_MASKED]
    assert encoded.packed.hidden.shape[0] == 3
    torch.testing.assert_close(encoded.rows(torch.tensor([12, 1])), whole.last_hidden_state()[[12, 1]])
    with pytest.raises(AssertionError, match="some rows"):
        encoded.last_hidden_state()


def test_what_the_fused_encoder_reads_stays_whole():
    config = tiny_config()
    module, batch = build_task(config), make_batch(Kind.PAIR, config)
    reads = {
        view: module.model.first_rows(view, batch) for view in (View.IMAGE_MASKED, View.MULTIMODAL_MASKED)
    }
    encoded = module.model.encode(batch, reads.keys(), reads)
    assert encoded[View.IMAGE_MASKED].packed.hidden.shape[0] == batch.size * (
        1 + config.model.image.num_patches
    )
    whole = module.model.encode(batch, {View.MULTIMODAL_MASKED})[View.MULTIMODAL_MASKED]
    torch.testing.assert_close(encoded[View.MULTIMODAL_MASKED].first(), whole.first())


@pytest.mark.parametrize(
    ("kind", "view"),
    [(Kind.TEXT, View.TEXT_MASKED), (Kind.TEXT, View.TEXT), (Kind.PAIR, View.MULTIMODAL_MASKED)],
)
def test_packed_texts_never_see_each_other(kind, view):
    """Another text in the middle of the packed sequence, of the same or another length, leaves states and
    gradients of all others as they are, up to the last bits of fp64: a matrix product may round a row
    differently among other rows."""
    config = tiny_config()
    model = build_task(config).double().model
    lengths = (9, 32, 3, 17)
    first = make_batch(kind, config, size=4, seed=1, lengths=lengths)
    start, end = int(first["cu_seqlens"][1]), int(first["cu_seqlens"][2])
    for length in (32, 5):
        ids = torch.cat([torch.tensor([101]), torch.arange(110, 110 + length - 2), torch.tensor([102])])
        other = first.having(
            input_ids=torch.cat([first["input_ids"][:start], ids, first["input_ids"][end:]]),
            input_ids_masked=torch.cat(
                [first["input_ids_masked"][:start], ids, first["input_ids_masked"][end:]]
            ),
            cu_seqlens=torch.tensor([0, *lengths[:1], length, *lengths[2:]]).cumsum(0).to(torch.int32),
        )
        states = []
        for batch in (first, other):
            packed = model.encode(batch, {view})[view].packed
            parts = [
                packed.hidden[a:b]
                for a, b in zip(packed.cu_seqlens[:-1].tolist(), packed.cu_seqlens[1:].tolist(), strict=True)
            ]
            model.zero_grad()
            torch.cat([parts[row] for row in (0, 2, 3)]).square().sum().backward()
            states.append(
                (
                    parts,
                    [
                        parameter.grad.clone()
                        for parameter in model.text_encoder.parameters()
                        if parameter.grad is not None
                    ],
                )
            )
        (ours, our_gradients), (theirs, their_gradients) = states
        torch.testing.assert_close(
            [ours[row] for row in (0, 2, 3)], [theirs[row] for row in (0, 2, 3)], rtol=1e-12, atol=1e-13
        )
        assert ours[1].shape != theirs[1].shape or not torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-12, atol=1e-12)


def test_post_norm_blocks_equal_torchs_and_finish_only_the_rows_that_are_read():
    shape = EncoderConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-5
    )
    torch.manual_seed(0)
    ours = Transformer(shape, post_norm=True).double()
    layers = [
        torch.nn.TransformerEncoderLayer(24, 3, 40, dropout=0.0, activation="gelu", batch_first=True).double()
        for _ in ours.blocks
    ]
    for block, layer in zip(ours.blocks, layers, strict=True):
        attention = layer.self_attn
        pairs = [
            (block.attention.qkv.weight, attention.in_proj_weight),
            (block.attention.qkv.bias, attention.in_proj_bias),
            *zip(block.attention.output.parameters(), attention.out_proj.parameters(), strict=True),
            *zip(block.mlp_up.parameters(), layer.linear1.parameters(), strict=True),
            *zip(block.mlp_down.parameters(), layer.linear2.parameters(), strict=True),
            *zip(block.attention_norm.parameters(), layer.norm1.parameters(), strict=True),
            *zip(block.mlp_norm.parameters(), layer.norm2.parameters(), strict=True),
        ]
        with torch.no_grad():
            for own, their in pairs:
                their.normal_(std=0.3)
                own.copy_(their)
    hidden, rows = torch.randn(12, 24, dtype=torch.float64), torch.tensor([0, 5, 11])
    packed = Packed(hidden, torch.tensor([0, 5, 12], dtype=torch.int32), 7)
    expected = []
    for sample in hidden.split([5, 7]):
        for layer in layers:
            sample = layer(sample[None])[0]
        expected.append(sample)
    torch.testing.assert_close(ours(packed), torch.cat(expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(packed, rows=rows), torch.cat(expected)[rows], rtol=1e-10, atol=1e-12)


def test_a_dropped_path_leaves_the_norm_of_the_stream_in_post_norm_blocks():
    shape = EncoderConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    torch.manual_seed(0)
    transformer, hidden = Transformer(shape, post_norm=True).double(), torch.randn(4, 8, dtype=torch.float64)
    packed = Packed(hidden, torch.tensor([0, 4], dtype=torch.int32), 4)
    whole, dropped = (
        transformer(packed, paths=torch.full((1, 2, 4), kept, dtype=torch.float64)) for kept in (1.0, 0.0)
    )
    torch.testing.assert_close(whole, transformer(packed), rtol=1e-12, atol=1e-12)
    twice = torch.nn.functional.layer_norm(torch.nn.functional.layer_norm(hidden, (8,)), (8,))
    torch.testing.assert_close(dropped, twice, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True], ids=["GELU kept", "GELU computed again"])
def test_a_block_keeps_what_the_closed_form_says(recomputed):
    """With the operators of a GPU, on the meta device, at flava_base's width in bf16: 16d + 4f + 4h + 16
    bytes a token, and 2f less without GELU's result.
    """
    width, inner, heads, tokens = 768, 3072, 12, 100
    with torch.device("meta"):
        block = Block(EncoderConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=inner))
        stream, branch = (torch.empty(tokens, width).bfloat16().requires_grad_() for _ in range(2))
        cu_seqlens = torch.empty(2, dtype=torch.int32)
    block.bfloat16().recompute_gelu(recomputed)
    parameters = [parameter.untyped_storage() for parameter in block.parameters()]
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if not any(storage._cdata == of._cdata for of in (*parameters, cu_seqlens.untyped_storage())):
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(stream * 1, branch * 1, cu_seqlens, tokens, False)
    expected = 16 * width + (2 if recomputed else 4) * inner + 4 * heads + 16
    assert sum(storage.nbytes() for storage in kept.values()) == tokens * expected


@pytest.mark.parametrize(("sums", "tensors"), [(False, 2), (True, 1)])
def test_a_checkpoint_keeps_the_stream_and_the_branch_or_their_sum(sums, tensors):
    width, tokens, blocks = 8, 5, 4
    shape = EncoderConfig(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=16
    )
    transformer = Transformer(shape)
    transformer.activation_checkpointing, transformer.checkpoint_sums = True, sums
    kept, cu_seqlens = {}, torch.tensor([0, tokens], dtype=torch.int32)

    def keep(tensor):
        if tensor.shape == (tokens, width):
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        transformer(Packed(torch.randn(tokens, width, requires_grad=True), cu_seqlens, tokens))
    assert len(kept) == 1 + tensors * (blocks - 1)  # the first block has no branch
