"""A block as one node of autograd, against the same block's layers: bit for bit, with the same launches and
the same tensors kept.
"""

import copy

import pytest
import torch
from flava_kernels import pre_norm_block
from flava_kernels.cases.packing import cu_seqlens_of
from one_node_checks import assert_both_ways_agree, assert_same, run, run_layers, stack
from op_checks import relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from flava_ds.batch import Packed
from flava_ds.layers import transformer as transformers

triton = pytest.mark.triton
ROWS = torch.tensor([0, 5, 6, 17])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("FLAVA_KERNELS", "triton")


@triton
@DTYPES
@pytest.mark.parametrize("rows", [None, ROWS], ids=["all rows", "some rows"])
def test_one_node_is_the_layers_bit_for_bit(monkeypatch, dtype, rows):
    assert_both_ways_agree(monkeypatch, stack(dtype), rows=rows)


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
    assert_both_ways_agree(monkeypatch, stack(torch.bfloat16, **shape), **options)


@triton
@DTYPES
def test_gelu_that_is_computed_again(monkeypatch, dtype):
    transformer = stack(dtype)
    for block in transformer.blocks:
        block.recompute_gelu(True)
    layers = copy.deepcopy(transformer)
    found, kept, count = run(transformer, lengths=(3,))
    expected, theirs, _ = run_layers(monkeypatch, layers, lengths=(3,))
    assert count == 2 and kept == theirs
    assert_same(found, expected)


@triton
@pytest.mark.parametrize("sums", [False, True], ids=["", "sums"])
def test_checkpointed_blocks(monkeypatch, sums):
    transformer = stack(torch.bfloat16)
    transformer.activation_checkpointing, transformer.checkpoint_sums = True, sums
    layers = copy.deepcopy(transformer)
    found, kept, count = run(transformer, lengths=(3,))
    expected, theirs, _ = run_layers(monkeypatch, layers, lengths=(3,))
    assert_same(found, expected)
    assert count == 2 and kept == theirs


@triton
def test_a_graph_may_be_walked_twice():
    """As GradNorm does."""
    transformer = stack(torch.bfloat16)
    hidden = torch.randn(4, 128).bfloat16().requires_grad_()
    result = transformer(Packed(hidden, cu_seqlens_of((4,)), 4)).sum()
    wanted = [hidden, *transformer.parameters()]
    twice = [torch.autograd.grad(result, wanted, retain_graph=True) for _ in range(2)]
    assert all(map(torch.equal, *twice))


@triton
def test_a_gradient_with_a_graph_is_refused():
    transformer = stack()
    hidden = torch.randn(4, 128, requires_grad=True)
    result = transformer(Packed(hidden, cu_seqlens_of((4,)), 4))
    with pytest.raises(RuntimeError, match="is differentiable once"):
        torch.autograd.grad(result.sum(), hidden, create_graph=True)


@triton
def test_sequences_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="cu_seqlens"):
        stack()(Packed(torch.randn(4, 128, requires_grad=True), cu_seqlens_of((5,)), 5))


@triton
@pytest.mark.parametrize("lengths", [(), (0, 0)], ids=["no sequence", "empty ones"])
def test_an_empty_batch_is_one_node_too(monkeypatch, lengths):
    """Or a rank that has none would hand its gradients over in another order than the others."""
    assert_both_ways_agree(monkeypatch, stack(), lengths=lengths)


@triton
def test_autocast_around_a_pass(monkeypatch):
    transformer = stack(torch.bfloat16)
    layers = copy.deepcopy(transformer)
    with torch.autocast("cpu", torch.bfloat16):
        found, _, count = run(transformer, lengths=(3,))
    assert count == 0, "forward within autocast"
    with monkeypatch.context() as patched:
        patched.setattr(transformers, "run_as_one_node", lambda *arguments: None)
        with torch.autocast("cpu", torch.bfloat16):
            expected = run(layers, lengths=(3,))[0]
    assert_same(found, expected)
    hidden = torch.randn(3, 128).bfloat16().requires_grad_()
    result = transformer(Packed(hidden, cu_seqlens_of((3,)), 3))
    (outside,) = torch.autograd.grad(result.sum(), hidden, retain_graph=True)
    with torch.autocast("cpu", torch.float16):
        (inside,) = torch.autograd.grad(result.sum(), hidden)
    assert relative_error(inside, outside) < 1e-2


@triton
def test_a_checkpointed_block_computes_no_more_than_its_layers_would(monkeypatch):
    def products(**options) -> int:
        transformer = stack()
        transformer.activation_checkpointing = True
        result = transformer(Packed(torch.randn(3, 128, requires_grad=True), cu_seqlens_of((3,)), 3))
        with Products() as counted:
            result.sum().backward()
        return counted.number

    own = products()
    monkeypatch.setattr(transformers, "run_as_one_node", lambda *arguments: None)
    assert own == products() == 2 * 11


class Products(TorchDispatchMode):
    """Counts matrix products. It is entered below autograd, where a pass has been prepared already."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.number += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return function(*arguments, **(keywords or {}))


WEIGHTS = {
    "attention_norm": (128,), "attention_norm_bias": (128,), "qkv": (384, 128), "qkv_bias": (384,),
    "output": (128, 128), "output_bias": (128,), "mlp_norm": (128,), "mlp_norm_bias": (128,),
    "up": (72, 128), "up_bias": (72,),
}  # fmt: skip
REFUSED = {
    "stream of columns": {"stream": torch.zeros(128, 18).T},
    "stream of three axes": {"stream": torch.zeros(2, 9, 128)},
    "branch of columns": {"branch": torch.zeros(128, 18).T},
    "branch in bf16": {"branch": torch.zeros(18, 128).bfloat16()},
    "branch with fewer rows": {"branch": torch.zeros(17, 128)},
    "wide bias of the branch": {"branch_bias": torch.zeros(256)},
    "bias of the branch in fp64": {"branch_bias": torch.zeros(128).double()},
    "int64 bounds": {"cu_seqlens": torch.tensor([0, 18])},
    "every other bound": {"cu_seqlens": torch.zeros(4, dtype=torch.int32)[::2]},
    "heads that do not divide": {"num_heads": 3},
    "heads of 16": {"num_heads": 8},
    "too long": {"max_seqlen": 1 << 24},
    "pruned heads": {"qkv": torch.zeros(192, 128), "output": torch.zeros(128, 64)},
    "narrow norm": {"mlp_norm": torch.zeros(64)},
    "no bias": {"up_bias": None},
    "frozen": {"up": torch.zeros(72, 128), "requires_grad": False},
    "weights by columns": {"up": torch.zeros(128, 72).T},
}


@triton
@pytest.mark.parametrize("changed", REFUSED.values(), ids=REFUSED)
def test_what_an_operator_would_refuse_is_not_taken(changed):
    def takes(max_seqlen=18, num_heads=2, requires_grad=True, **tensors) -> bool:
        given = {
            "stream": torch.zeros(18, 128), "branch": torch.zeros(18, 128), "branch_bias": torch.zeros(128),
            "cu_seqlens": torch.tensor([0, 18]).int(),
        }  # fmt: skip
        weights = {name: tensors.pop(name, torch.zeros(*shape)) for name, shape in WEIGHTS.items()}
        for own in weights.values():
            if own is not None:
                own.requires_grad_(requires_grad)
        options = pre_norm_block.BlockOptions(max_seqlen, False, False, num_heads, 1e-5, 1e-5, True)
        return pre_norm_block.takes(
            **given | tensors, options=options, weights=pre_norm_block.BlockWeights(**weights)
        )

    assert takes()
    assert not takes(**changed)


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("rows", [None, ROWS], ids=["all rows", "some rows"])
def test_on_a_gpu_too(monkeypatch, dtype, rows):
    rows = None if rows is None else rows.cuda()
    assert_both_ways_agree(monkeypatch, stack(dtype, "cuda"), rows=rows)
