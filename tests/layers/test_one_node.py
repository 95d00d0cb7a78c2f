"""Blocks run as one node of autograd unless somebody may have changed what their layers do."""

import copy

import pytest
import torch
from flava_kernels.cases.packing import cu_seqlens_of
from one_node_checks import LENGTHS, assert_same, nodes, run, run_layers, stack
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.layers.fused import LinearGELU
from flava_ds.layers.one_node import layered
from flava_ds.layers.transformer import Attention, Block
from flava_ds.training.task import fold_biases

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")


class Other(LinearGELU):
    """A layer of another kind, as a user's may be."""


class Marked(Tensor):
    """A kind of weights whose operations may mean something else."""


class OtherBlock(Block):
    """A block of another kind."""


def freeze(transformer):
    transformer.blocks[1].mlp_norm.bias.requires_grad_(False)


def hook(transformer):
    transformer.blocks[1].attention.register_forward_hook(lambda *_: None)


def hook_gradients(transformer):
    transformer.blocks[1].attention.output.register_full_backward_hook(lambda *_: None)


def replace(transformer):
    other = Other(128, 72)
    other.load_state_dict(transformer.blocks[1].mlp_up.state_dict())
    transformer.blocks[1].mlp_up = other


def replace_forward(transformer):
    layer = transformer.blocks[1].mlp_up
    layer.forward = type(layer).forward.__get__(layer)


def widen(transformer):
    transformer.blocks[1].mlp_norm.float()


def unfold(transformer):
    fold_biases(transformer.blocks[1], False)


def unfold_attention(transformer):
    fold_biases(transformer.blocks[1].attention, False)


def subclass_a_weight(transformer):
    up = transformer.blocks[1].mlp_up
    up.weight = nn.Parameter(up.weight.detach().as_subclass(Marked))


def replace_the_block(transformer):
    transformer.blocks[1].__class__ = OtherBlock


def replace_attention(transformer):
    transformer.blocks[1].attention.__class__ = type("OtherAttention", (Attention,), {})


LAYERED = [
    freeze, hook, hook_gradients, replace, replace_forward, widen, unfold, unfold_attention,
    subclass_a_weight, replace_the_block, replace_attention,
]  # fmt: skip


@pytest.mark.parametrize("touch", LAYERED, ids=lambda touch: touch.__name__)
def test_a_touched_block_runs_its_layers(monkeypatch, touch):
    transformer, layers = (stack(torch.bfloat16 if touch is widen else torch.float32) for _ in range(2))
    touch(transformer)
    touch(layers)
    found, _, count = run(transformer, lengths=(3,))
    assert count == 1, "the other block is"
    assert_same(found, run_layers(monkeypatch, layers, lengths=(3,))[0])


def drop_a_parameter(transformer):
    """What prune.remove() leaves: the same parameters in another order."""
    norm = transformer.blocks[1].mlp_norm
    weight = norm.weight
    del norm.weight
    norm.weight = weight


def add_a_parameter(transformer):
    transformer.blocks[1].mlp_norm.register_parameter("scale", nn.Parameter(torch.ones(1)))


@pytest.mark.parametrize("touch", [drop_a_parameter, add_a_parameter], ids=lambda touch: touch.__name__)
def test_parameters_are_known_by_their_names(monkeypatch, touch):
    transformer = stack()
    touch(transformer)
    layers = copy.deepcopy(transformer)
    found, _, count = run(transformer, lengths=(3,))
    assert count == 2
    assert_same(found, run_layers(monkeypatch, layers, lengths=(3,))[0])


def test_each_norm_has_its_epsilon(monkeypatch):
    transformer = stack()
    transformer.blocks[0].mlp_norm.eps = 0.5
    layers = copy.deepcopy(transformer)
    assert_same(run(transformer, lengths=(3,))[0], run_layers(monkeypatch, layers, lengths=(3,))[0])


def test_stochastic_depth_and_global_hooks_run_layers():
    assert run(stack(), paths=torch.ones(2, 2, sum(LENGTHS)))[2] == 0
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert run(stack())[2] == 0
    finally:
        handle.remove()


def test_without_gradients_layers_run():
    transformer, hidden = stack(), torch.randn(4, 128)
    packed = Packed(hidden, cu_seqlens_of((4,)), 4)
    with torch.no_grad():
        expected = transformer(packed)
    assert "_PreNormBlockBackward" in nodes(found := transformer(packed))
    assert torch.equal(found.detach(), expected)


@pytest.mark.parametrize("mode", ["torch", "auto"])
def test_references_run_as_layers(monkeypatch, mode):
    monkeypatch.setenv("FLAVA_KERNELS", mode)
    assert run(stack())[2] == 0


def test_layered_blocks_are_counted():
    """Ranks compare the numbers."""
    transformer, cpu = stack(), torch.device("cpu")
    assert layered(transformer.blocks, cpu) == 0
    hook(transformer)
    assert layered(transformer.blocks, cpu) == 1
    fold_biases(transformer, False)
    assert layered(transformer.blocks, cpu) == 2
