"""Layers that leave their biases' gradients to the operators behind them change no gradient, whatever stands
around them.
"""

import copy

import pytest
import torch
from flava_kernels.dropout import row_keys
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig, VisionEncoderConfig
from flava_ds.layers.cross_attention import CrossBlock, DecoderBlock
from flava_ds.layers.fused import Branch, FoldingLinear, GELULinear
from flava_ds.layers.hidden_dropout import HiddenDropout
from flava_ds.layers.positioned import Positioned, PositionedTransformer
from flava_ds.layers.relative_positions import RelativeBlock
from flava_ds.layers.transformer import Block, PostNormBlock, Transformer
from flava_ds.layers.two_streams import STREAMS, CoAttention, SharedExchange, TwoStreams
from flava_ds.training.task import fold_biases

SHAPE = EncoderConfig(
    hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-6
)
LENGTHS = (4, 1, 6)
CROSSING = (CrossBlock, DecoderBlock)
FOLDED = {Block: 9, PostNormBlock: 9, CrossBlock: 12, DecoderBlock: 12}
"""Biases of three blocks."""


def packed(lengths=LENGTHS, width: int = 24) -> Packed:
    hidden = torch.randn(sum(lengths), width, dtype=torch.float64, requires_grad=True)
    return Packed(hidden, torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))


def stack(block: type[Block], shape=SHAPE) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(shape, block=block).double()
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return transformer


def gradients(module: nn.Module, run) -> dict[str, Tensor]:
    """Of a module's parameters, and of what went in; `run` returns the result and its inputs."""
    torch.manual_seed(1)
    result, inputs = run(module)
    result.backward(torch.randn_like(result))
    found = {name: own.grad for name, own in module.named_parameters() if own.grad is not None}
    return found | {f"input {place}": own.grad for place, own in enumerate(inputs)}


def assert_folding_changes_nothing(module: nn.Module, run, folded: int | None = None) -> None:
    """Bit for bit; `folded` are the biases whose layers do not sum them."""
    folding = copy.deepcopy(module)
    fold_biases(folding, True)
    detached = []
    for part in folding.modules():
        if isinstance(part, FoldingLinear):
            forward = part.forward
            part.forward = lambda hidden, detached_now=detached, own=forward, detached=False: (
                detached_now.append(detached) or own(hidden, detached=detached)
            )
    expected, found = gradients(module, run), gradients(folding, run)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    if folded is not None:
        assert sum(detached) == folded


def through(paths=None, drops=None, rows=None):
    """Returns a function that runs a transformer over texts."""

    def run(transformer: Transformer):
        texts = packed()
        memory = packed((2, 7, 3)) if isinstance(transformer.blocks[0], CROSSING) else None
        result = transformer(texts, rows=rows, paths=paths, drops=drops, memory=memory)
        return result, [texts.hidden] + ([] if memory is None else [memory.hidden])

    return run


BLOCKS = pytest.mark.parametrize("block", [Block, PostNormBlock, *CROSSING])


@BLOCKS
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "GELU computed again"])
def test_biases_of_blocks_fold(block, recomputed):
    transformer = stack(block)
    for own in transformer.blocks:
        own.recompute_gelu(recomputed)
    assert_folding_changes_nothing(transformer, through(), folded=FOLDED[block])


@BLOCKS
@pytest.mark.parametrize("sums", [False, True], ids=["", "sums"])
def test_checkpoints_change_nothing(block, sums):
    transformer = stack(block)
    transformer.activation_checkpointing, transformer.checkpoint_sums = True, sums
    assert_folding_changes_nothing(transformer, through())


@pytest.mark.parametrize("block", [Block, PostNormBlock, CrossBlock])
def test_the_last_block_may_finish_some_rows_only(block):
    assert_folding_changes_nothing(stack(block), through(rows=torch.tensor([0, 4, 10])), folded=FOLDED[block])


@pytest.mark.parametrize("block", [Block, PostNormBlock])
def test_under_stochastic_depth_attention_alone_folds(block):
    paths = torch.rand(3, 2, sum(LENGTHS), dtype=torch.float64)
    assert_folding_changes_nothing(stack(block), through(paths=paths), folded=3)


@BLOCKS
def test_under_dropout_attention_alone_folds(block):
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    drops = HiddenDropout(row_keys(torch.arange(3), bounds, sum(LENGTHS), 0), 0.3)
    assert_folding_changes_nothing(stack(block), through(drops=drops), folded=3)


@pytest.mark.parametrize("frozen", ["bias", "weight", "norm"])
@pytest.mark.parametrize("block", [Block, PostNormBlock])
def test_frozen_parameters_stay_without_a_gradient(block, frozen):
    transformer = stack(block)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(frozen not in name)
    assert_folding_changes_nothing(transformer, through())


def test_attention_that_is_not_ours_sums_its_own_bias():
    shape = VisionEncoderConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        image_size=4, patch_size=2,
    )  # fmt: skip

    def run(transformer: Transformer):
        images = packed((5, 5))
        return transformer(images, equal_lengths=True), [images.hidden]

    assert_folding_changes_nothing(stack(RelativeBlock, shape), run, folded=4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_two_streams(shared, checkpointing):
    torch.manual_seed(0)
    exchanges = [SharedExchange(SHAPE) if shared else CoAttention(SHAPE, SHAPE, 4, 16) for _ in range(2)]
    streams = TwoStreams(SHAPE, SHAPE, exchanges).double()
    streams.activation_checkpointing = checkpointing

    def run(streams: TwoStreams):
        text, regions = packed(), packed((2, 7, 3))
        found = streams(text, regions, dict.fromkeys(STREAMS))
        return torch.cat(list(found.values())), [text.hidden, regions.hidden]

    assert_folding_changes_nothing(streams, run)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("crosses", [False, True])
def test_positioned_blocks(crosses, checkpointing):
    torch.manual_seed(0)
    transformer = PositionedTransformer(SHAPE, crosses=crosses).double()
    transformer.activation_checkpointing = checkpointing

    def run(transformer: PositionedTransformer):
        own, memory = packed(), packed((2, 7, 3))
        read = Positioned(memory, torch.randn_like(memory.hidden)) if crosses else None
        result = transformer(Positioned(own, torch.randn_like(own.hidden)), read)
        return result, [own.hidden, *([memory.hidden] if crosses else [])]

    folded = None if checkpointing else 9 if crosses else 6
    assert_folding_changes_nothing(transformer, run, folded)


def test_a_layer_that_is_called_as_usual_sums_its_own_bias():
    for layer in (FoldingLinear(3, 2), GELULinear(3, 2)):
        fold_biases(layer, True)
        layer(torch.randn(4, 3)).sum().backward()
        assert layer.bias.grad.tolist() == [4.0, 4.0]
        result, left = layer.unsummed(torch.randn(4, 3))
        assert left is layer.bias
        layer.bias.grad = None
        Branch(result, left).onto(torch.randn(4, 2)).sum().backward()
        assert layer.bias.grad.tolist() == [4.0, 4.0]
        fold_biases(layer, False)
        assert layer.unsummed(torch.randn(4, 3))[1] is None
