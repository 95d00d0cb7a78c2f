"""A block as one node of autograd, against the same block's layers: bit for bit, with the same launches and
the same tensors kept; and where layers must run, they do.
"""

import contextlib
import copy

import pytest
import torch
from flava_kernels import pre_norm_block
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.triton_ops import attention, layer_norm, linear_gelu
from op_checks import relative_error
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.config.encoders import EncoderConfig
from flava_ds.layers import transformer as transformers
from flava_ds.layers.fused import LinearGELU
from flava_ds.layers.transformer import Transformer
from flava_ds.training.task import fold_biases

triton = pytest.mark.triton
LENGTHS = (5, 1, 20)
ROWS = torch.tensor([0, 5, 6, 25])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def stack(dtype=torch.float32, device="cpu", head_size=64, causal=False) -> Transformer:
    torch.manual_seed(0)
    shape = EncoderConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=128 // head_size, intermediate_size=72
    )
    transformer = Transformer(shape, causal=causal).to(device, dtype)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.3)
    fold_biases(transformer, True)
    return transformer


class Launches:
    """Counts calls of the functions that launch kernels, by name and the shapes of their first tensor."""

    def __init__(self, monkeypatch):
        self.calls = []
        for module in (attention, layer_norm, linear_gelu):
            for name in ("forward", "backward"):
                monkeypatch.setattr(module, name, self._counted(module, name, getattr(module, name)))

    def _counted(self, module, name, function):
        def counted(first, *arguments):
            self.calls.append((module.__name__, name, tuple(first.shape)))
            return function(first, *arguments)

        return counted


def nodes(result: Tensor) -> list[str]:
    """Names of the nodes of a result's graph."""
    found, waiting = {}, [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def run(transformer: Transformer, *, alone=contextlib.nullcontext, lengths=LENGTHS, rows=None, **others):
    """Returns the result, gradients, bytes kept beside parameters, and how many blocks are one node."""
    reference = next(transformer.parameters())
    torch.manual_seed(1)
    hidden = torch.randn(sum(lengths), 128).to(reference).requires_grad_()
    bounds = cu_seqlens_of(lengths).to(reference.device)
    kept, own = {}, {parameter.data_ptr() for parameter in transformer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with alone(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = transformer(Packed(hidden, bounds, max(lengths)), rows=rows, **others)
    count = nodes(result).count("_PreNormBlockBackward")
    upstream = torch.randn(result.shape).to(result)
    result.backward(upstream, retain_graph=True)
    parameters = {name: own for name, own in transformer.named_parameters() if own.grad is not None}
    found = {f"d {name}": own.grad.clone() for name, own in parameters.items()}
    for own in parameters.values():
        own.grad = None
    hidden.grad, first = None, hidden.grad.clone()
    result.backward(upstream)
    assert torch.equal(hidden.grad, first)
    assert all(torch.equal(own.grad, found[f"d {name}"]) for name, own in parameters.items())
    return found | {"result": result.detach(), "d hidden": first}, sum(kept.values()), count


def run_layers(monkeypatch, transformer: Transformer, **options):
    with monkeypatch.context() as patched:
        patched.setattr(transformers, "run_as_one_node", lambda *arguments: None)
        return run(transformer, **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], near: str = "") -> None:
    """Bit for bit, but for gradients whose name has `near` in it."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if near and near in name:
            assert relative_error(found[name], tensor) < 1e-2, name
        else:
            assert torch.equal(found[name], tensor), name


def compare(monkeypatch, transformer: Transformer, **options) -> None:
    """Runs a stack both ways, and compares everything."""
    layers = copy.deepcopy(transformer)
    launches = Launches(monkeypatch)
    found, kept, count = run(transformer, **options)
    launches.calls, own = [], launches.calls
    expected, theirs, none = run_layers(monkeypatch, layers, **options)
    assert (count, none) == (3, 0)
    assert_same(found, expected)
    assert own == launches.calls and len(own) >= 3 * 12
    assert kept == theirs


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")


@triton
@DTYPES
@pytest.mark.parametrize("rows", [None, ROWS], ids=["all rows", "some rows"])
def test_one_node_is_the_layers_bit_for_bit(monkeypatch, dtype, rows):
    compare(monkeypatch, stack(dtype), rows=rows)


@triton
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"causal": True}, {}),
        ({"head_size": 32}, {}),
        ({}, {"lengths": (9, 9), "equal_lengths": True}),
    ],
    ids=["causal", "heads of 32", "equal lengths"],
)
def test_other_kinds_of_attention(monkeypatch, shape, options):
    compare(monkeypatch, stack(torch.bfloat16, **shape), **options)


@triton
@DTYPES
def test_gelu_that_is_computed_again(monkeypatch, dtype):
    """The kernel sums the bias of the first layer before dz is rounded; alone, that layer sums it after."""
    transformer = stack(dtype)
    for block in transformer.blocks:
        block.recompute_gelu(True)
    layers = copy.deepcopy(transformer)
    (found, kept, count), (expected, theirs, _) = run(transformer), run_layers(monkeypatch, layers)
    assert count == 3 and kept == theirs
    assert_same(found, expected, near="mlp_up.bias")


@triton
@pytest.mark.parametrize("sums", [False, True], ids=["", "sums"])
def test_checkpointed_blocks(monkeypatch, sums):
    transformer = stack(torch.bfloat16)
    transformer.activation_checkpointing, transformer.checkpoint_sums = True, sums
    layers = copy.deepcopy(transformer)
    (found, kept, count), (expected, theirs, _) = run(transformer), run_layers(monkeypatch, layers)
    assert_same(found, expected)
    assert count == 3 and kept == theirs


@triton
def test_a_second_differentiation_is_refused():
    transformer = stack()
    hidden = torch.randn(4, 128, requires_grad=True)
    result = transformer(Packed(hidden, cu_seqlens_of((4,)), 4))
    (gradient,) = torch.autograd.grad(result.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@triton
def test_sequences_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="cu_seqlens"):
        stack()(Packed(torch.randn(4, 128, requires_grad=True), cu_seqlens_of((5,)), 5))


class Other(LinearGELU):
    """A layer of another kind, as a user's may be."""


def freeze(transformer):
    transformer.blocks[1].mlp_norm.bias.requires_grad_(False)


def hook(transformer):
    transformer.blocks[1].attention.register_forward_hook(lambda *_: None)


def hook_gradients(transformer):
    transformer.blocks[1].mlp_down.register_full_backward_hook(lambda *_: None)


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


@triton
@pytest.mark.parametrize(
    "touch", [freeze, hook, hook_gradients, replace, replace_forward, widen, unfold], ids=lambda f: f.__name__
)
def test_a_touched_block_runs_its_layers(monkeypatch, touch):
    transformer = stack(torch.bfloat16 if touch is widen else torch.float32)
    touch(transformer)
    layers = copy.deepcopy(transformer)
    found, _, count = run(transformer)
    assert count == 2, "the other two blocks are"
    assert_same(found, run_layers(monkeypatch, layers)[0])


@triton
def test_stochastic_depth_and_global_hooks_run_layers():
    assert run(stack(), paths=torch.ones(3, 2, sum(LENGTHS)))[2] == 0
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert run(stack())[2] == 0
    finally:
        handle.remove()


@triton
def test_without_gradients_layers_run():
    transformer, hidden = stack(), torch.randn(4, 128)
    packed = Packed(hidden, cu_seqlens_of((4,)), 4)
    with torch.no_grad():
        expected = transformer(packed)
    assert "_PreNormBlockBackward" in nodes(found := transformer(packed))
    assert torch.equal(found.detach(), expected)


@triton
@pytest.mark.parametrize(
    "changed",
    [
        {"stream": torch.zeros(0, 128)},
        {"stream": torch.zeros(128, 26).T},
        {"branch": torch.zeros(128, 26).T},
        {"branch": torch.zeros(26, 128).bfloat16()},
        {"cu_seqlens": torch.tensor([0, 26])},
        {"cu_seqlens": torch.zeros(4, dtype=torch.int32)[::2]},
        {"num_heads": 1 << 2, "stream": torch.zeros(26, 96)},
        {"max_seqlen": 1 << 24},
    ],
    ids=str,
)
def test_what_an_operator_would_refuse_is_not_taken(changed):
    width = changed.get("stream", torch.zeros(26, 128)).shape[1]
    layers = [torch.zeros(width, width, requires_grad=True), torch.zeros(width, requires_grad=True)] * 6
    weights = pre_norm_block.BlockWeights(*layers)
    arguments = {
        "stream": torch.zeros(26, 128), "branch": None, "cu_seqlens": torch.tensor([0, 26]).int(),
    }  # fmt: skip

    def takes(max_seqlen=26, num_heads=2, **tensors) -> bool:
        options = pre_norm_block.BlockOptions(max_seqlen, False, False, num_heads, 1e-5, False)
        return pre_norm_block.takes(**arguments | tensors, options=options, weights=weights)

    assert width != 128 or takes()
    assert not takes(**changed)


@triton
@pytest.mark.parametrize("mode", ["torch", "auto"])
def test_references_run_as_layers(monkeypatch, mode):
    monkeypatch.setenv("FLAVA_KERNELS", mode)
    assert run(stack())[2] == 0


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("rows", [None, ROWS], ids=["all rows", "some rows"])
def test_on_a_gpu_too(monkeypatch, dtype, rows):
    rows = None if rows is None else rows.cuda()
    compare(monkeypatch, stack(dtype, "cuda"), rows=rows, lengths=LENGTHS)
