"""Where blocks drop elements, against the same formulas with masks by hand; what does not change a mask."""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
import torch.nn.functional as F
from flava_kernels.dropout import kept, row_keys
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.batch import Batch, Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.layers.cross_attention import CrossBlock, DecoderBlock
from flava_ds.layers.hidden_dropout import HiddenDropout, hidden_dropout, joined
from flava_ds.layers.transformer import Block, PostNormBlock, Transformer

SHAPE = EncoderConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-6
)
BOUNDS = torch.tensor([0, 5, 12], dtype=torch.int32)
P = 0.3
PLACES = {"attention": 0, "mlp": 1, "cross": 2, "activation": 3}


def drawn(seed: int = 0, bounds: torch.Tensor = BOUNDS, stream: int = 0) -> HiddenDropout:
    seeds = torch.arange(len(bounds) - 1) + 1000 * seed
    return HiddenDropout(row_keys(seeds, bounds, int(bounds[-1]), stream), P)


def by_hand(hidden, drops, layer, place, present=True):
    mask = kept(drops.keys, 4 * layer + PLACES[place], P, hidden.shape[1])
    return hidden * mask / (1 - P) if present else hidden


def stack(block: type, inside: bool = False) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(SHAPE, block=block, drops_inside=inside).double()
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return transformer


def expected(transformer: Transformer, hidden, memory, drops, inside: bool):
    """The blocks' formulas, unfused, over all rows."""
    post = isinstance(transformer.blocks[0], PostNormBlock)
    for layer, block in enumerate(transformer.blocks, start=1):

        def normed(norm, x, wanted):
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps) if wanted else x

        def mlp(x, block=block, layer=layer):
            activations = F.gelu(F.linear(x, block.mlp_up.weight, block.mlp_up.bias))
            return block.mlp_down(by_hand(activations, drops, layer, "activation", inside))

        def attended(x, block=block):
            return block.attention.output(block.attention(x, BOUNDS, 7, False))

        def crossed(x, block=block):
            return block.cross_attention.output(block.cross_attention(x, BOUNDS, 7, memory))

        parts = [("attention", block.attention_norm, attended), ("mlp", block.mlp_norm, mlp)]
        if isinstance(block, CrossBlock | DecoderBlock):
            parts.insert(1, ("cross", block.cross_norm, crossed))
        for place, norm, function in parts:
            added = by_hand(function(normed(norm, hidden, not post)), drops, layer, place)
            hidden = normed(norm, hidden + added, post)
    return hidden


@pytest.mark.parametrize(
    ("block", "inside"),
    [(Block, False), (Block, True), (PostNormBlock, False), (CrossBlock, False), (DecoderBlock, False)],
)
@pytest.mark.parametrize("recomputed", [False, True])
def test_blocks_drop_what_their_formulas_say(block, inside, recomputed):
    """With activation recomputation and without; gradients, too."""
    transformer, drops = stack(block, inside), drawn()
    transformer.activation_checkpointing = recomputed
    hidden, other = (torch.randn(12, 24, dtype=torch.float64, requires_grad=True) for _ in range(2))
    memory = Packed(other, BOUNDS, 7) if block in (CrossBlock, DecoderBlock) else None
    packed, upstream = Packed(hidden, BOUNDS, 7), torch.randn(12, 24, dtype=torch.float64)
    found, wanted = (
        transformer(packed, drops=drops, memory=memory),
        expected(transformer, hidden, memory, drops, inside),
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    parameters = [hidden, *transformer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters, upstream),
        torch.autograd.grad(wanted, parameters, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    if block is not DecoderBlock:
        rows = torch.tensor([0, 4, 5, 11])
        some = transformer(packed, rows=rows, drops=drops, memory=memory)
        torch.testing.assert_close(some, wanted[rows], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [Block, PostNormBlock])
def test_recomputation_has_the_same_bits_and_dropout_adds_no_flop_to_it(block):
    """A checkpoint stops computing again at the last tensor that was saved: a mask must not be that."""
    results, work = [], []
    for recomputed, drops in ((False, drawn()), (True, drawn()), (True, None)):
        transformer = stack(block).float()
        transformer.activation_checkpointing = recomputed
        hidden = torch.randn(12, 24, generator=torch.Generator().manual_seed(1))
        with FlopCounterMode(display=False) as counter:
            out = transformer(Packed(hidden, BOUNDS, 7), drops=drops)
            out.square().sum().backward()
        work.append(counter.get_total_flops())
        results.append([out, *(parameter.grad for parameter in transformer.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*results[:2], strict=True))
    assert not torch.equal(results[1][0], results[2][0])
    assert work[1] == work[2] > work[0]


def test_the_mean_over_many_seeds_is_what_a_block_adds_without_dropout():
    """With an attention that adds nothing, so that the MLP always reads the same. 4,000 copies of a sample,
    each with another seed; within 5 standard deviations of the mean.
    """
    torch.manual_seed(0)
    block, copies = Block(SHAPE), 4000
    nn.init.zeros_(block.attention.output.weight)
    nn.init.zeros_(block.attention.output.bias)
    bounds = torch.arange(0, 3 * copies + 1, 3).int()
    hidden = torch.randn(3, 24)
    with torch.no_grad():
        _, (plain, _) = block(hidden, None, bounds[:2], 3, True)
        drops = drawn(bounds=bounds).of(1)
        _, (dropped, _) = block(hidden.repeat(copies, 1), None, bounds, 3, True, drops=drops)
    mean = dropped.view(copies, 3, 24).mean(0)
    deviation = plain.abs() * (P / (1 - P) / copies) ** 0.5
    assert bool((mean - plain).abs().le(5 * deviation + 1e-7).all())
    assert dropped.view(copies, 3, 24).std(0).gt(0).all()


def test_joined_sequences_keep_their_own_masks():
    parts = drawn(stream=4), drawn(stream=5)
    whole = joined(parts)
    hidden = torch.ones(12, 24)
    assert torch.equal(whole(hidden.repeat(2, 1)), torch.cat([part(hidden) for part in parts]))
    assert joined([None, None]) is None and not torch.equal(parts[0](hidden), parts[1](hidden))


def test_a_batch_without_seeds_is_one_line_where_something_is_dropped():
    batch = Batch(kind="text", source="books", size=2, tensors={})
    assert hidden_dropout(batch, 0.0, BOUNDS, 12, 0) is None
    assert hidden_dropout(batch, P, BOUNDS, 12, 0, on=False) is None
    with pytest.raises(ValueError, match=r"hidden_dropout is 0.3, but the batch of 'books' has no"):
        hidden_dropout(batch, P, BOUNDS, 12, 0)


def test_a_block_that_drops_activations_keeps_them():
    """GELU's result has to be there to be dropped, so it is not computed again by the layer after it."""
    for inside in (False, True):
        (block, *_) = stack(Block, inside).blocks
        block.recompute_gelu(True)
        assert block.mlp_up.activates == inside and block.mlp_down.activates != inside
