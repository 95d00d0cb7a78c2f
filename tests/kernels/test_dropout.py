"""Dropout's hash against Python's integers, its statistics, and that a mask belongs to its row."""

import dataclasses
import itertools

import pytest
import torch
from flava_kernels import dropout as formula
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.dropout import dropout, kept, row_keys
from torch.autograd.graph import saved_tensors_hooks

P = 0.1
LENGTHS = (5, 0, 2, 9)
SEEDS = torch.tensor([-1, 7, 8, 2**63 - 1])


def mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def hashed(key: int, stream: int, column: int) -> int:
    """The formula of the module's docstring, in integers of any size."""
    state = mixed((key + (stream + 1) * 0x9E3779B97F4A7C15) % 2**64)
    value = (state % 2**32 + column * 0x9E3779B9) % 2**32
    value = (value ^ (value >> 16)) * 0x85EBCA6B % 2**32 ^ (state >> 32)
    return (value ^ (value >> 13)) * 0xC2B2AE35 % 2**32


def test_the_mask_is_that_of_whole_numbers():
    keys, stream = [0, -1, 12345678901234567, -(2**63), 2**63 - 1], 2**31 - 1
    mask = kept(torch.tensor(keys), stream, 0.3, 900)
    expected = [[hashed(key % 2**64, stream, c) >= round(0.3 * 2**32) for c in range(900)] for key in keys]
    assert mask.tolist() == expected


def test_keys_are_those_of_whole_numbers():
    gamma, keys = 0x9E3779B97F4A7C15, row_keys(SEEDS, cu_seqlens_of(LENGTHS), 16, 3).tolist()
    places = [(s, p) for s, length in enumerate(LENGTHS) for p in range(length)]
    for key, (sequence, position) in zip(keys, places, strict=True):
        sample = mixed((int(SEEDS[sequence]) + 4 * gamma) % 2**64)
        assert key % 2**64 == mixed((sample + (position + 1) * gamma) % 2**64)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_has_the_references_bits_also_of_rows_within_others(monkeypatch, dtype):
    torch.manual_seed(0)
    x, keys = torch.randn(40, 400).to(dtype)[1:38, 3:303], torch.randint(2**62, (74,))[::2]
    found = []
    for implementation in ("torch", "triton"):
        monkeypatch.setenv("FLAVA_KERNELS", implementation)
        found.append(dropout(x, keys, 17, 0.4))
    assert torch.equal(*found)


def masks() -> dict[str, torch.Tensor]:
    """Masks of 400 rows that differ in one thing from the first one."""
    samples, cu_seqlens = torch.arange(1000, 1004), cu_seqlens_of((100,) * 4)

    def mask(seeds=samples, view=0, stream=4):
        return kept(row_keys(seeds, cu_seqlens, 400, view), stream, P, 768)

    return {
        "itself": mask(),
        "next sample": mask(samples + 4),
        "next epoch": mask(torch.tensor([-(2**40), 3**30, 5**20, -(7**20)])),
        "next view": mask(view=1),
        "next place": mask(stream=5),
        "next layer": mask(stream=8),
        "next position": mask().roll(1, 0),
        "next column": mask().roll(1, 1),
        "far column": mask().roll(256, 1),
    }


def test_the_kept_share_is_binomial():
    """Of all elements, of every row and of every column, within 5 standard deviations."""
    for name, mask in masks().items():
        for dropped, count in (
            ((~mask).sum(), mask.numel()),
            ((~mask).sum(0), len(mask)),
            ((~mask).sum(1), 768),
        ):
            worst = (dropped - count * P).abs().max() / (count * P * (1 - P)) ** 0.5
            assert worst < 5, (name, worst)
        spread = (~mask).sum(1).double().var() / (768 * P * (1 - P))
        assert 0.6 < spread < 1.4, (name, spread)  # 0.07 is the standard deviation over 400 rows


def test_masks_of_samples_epochs_views_layers_and_places_are_independent():
    """Any two drop the same element in p^2 of the cases, within 5 standard deviations."""
    both = P * P
    for (name, one), (other, two) in itertools.combinations(masks().items(), 2):
        count = one.numel()
        apart = ((~one & ~two).sum() - count * both).abs() / (count * both * (1 - both)) ** 0.5
        assert apart < 5, (name, other, apart)


def test_a_row_keeps_its_mask_in_any_batch_and_among_some_rows_only():
    torch.manual_seed(0)
    cu_seqlens, x = cu_seqlens_of(LENGTHS), torch.randn(16, 30)
    keys = row_keys(SEEDS, cu_seqlens, 16, 2)
    assert torch.equal(row_keys(SEEDS[2:], cu_seqlens_of(LENGTHS[2:]), 11, 2), keys[5:])
    whole, rows = dropout(x, keys, 9, 0.5), torch.tensor([14, 0, 6, 7])
    assert torch.equal(dropout(x[rows], keys[rows], 9, 0.5), whole[rows])


def test_the_gradient_has_the_mask_and_no_tensor_is_saved():
    torch.manual_seed(0)
    x, keys, grad = torch.randn(16, 30, requires_grad=True), torch.randint(2**62, (16,)), torch.randn(16, 30)
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor):
        y = dropout(x, keys, 1, 0.5)
    y.backward(grad)
    assert saved == []
    assert torch.equal(x.grad, dropout(grad, keys, 1, 0.5)) and torch.equal(x.grad.eq(0), y.eq(0))
    assert torch.equal(y[y != 0], 2 * x[y != 0])


def test_what_is_dropped_is_zero_whatever_it_was():
    y = dropout(torch.full((8, 64), torch.inf), torch.arange(8), 0, 0.5)
    assert set(y.unique().tolist()) == {0.0, torch.inf}


def test_opcheck():
    arguments = torch.randn(5, 6, requires_grad=True), torch.arange(5), 3, 0.5
    torch.library.opcheck(torch.ops.flava_kernels.dropout.default, arguments)


def test_compiles_into_one_graph():
    x, keys = torch.randn(5, 6, requires_grad=True), torch.arange(5)
    compiled = torch.compile(lambda x: dropout(x * 2, keys, 3, 0.5), fullgraph=True, backend="aot_eager")
    out = compiled(x)
    out.backward(torch.ones_like(out))
    assert torch.equal(out, dropout(2 * x, keys, 3, 0.5))
    assert torch.equal(x.grad, 4.0 * kept(keys, 3, 0.5, 6))


def test_says_what_the_kernels_do_not_take():
    x, keys = torch.zeros(4, 6), torch.arange(4)
    assert formula.supports(x, keys, 0, P) is None
    assert "float64" in formula.supports(x.double(), keys, 0, P)
    assert "strides (1, 4)" in formula.supports(torch.zeros(6, 4).T, keys, 0, P)


@pytest.mark.parametrize(
    ("keys", "stream", "p", "words"),
    [
        (torch.arange(4), 0, 1.0, "p is 1.0; it must be at least 0 and less than 1"),
        (torch.arange(5), 0, P, r"keys are torch.int64 \(5,\), but int64 \(4,\) is wanted"),
        (torch.arange(4).int(), 0, P, "keys are torch.int32"),
        (torch.arange(4), -1, P, "stream is -1; it must be at least 0"),
        (torch.arange(4), 2**31, P, "stream is 2147483648; it must be at least 0 and less than 2.31"),
    ],
)
def test_bad_arguments_are_one_line(keys, stream, p, words):
    with pytest.raises(ValueError, match=words):
        dropout(torch.zeros(4, 6), keys, stream, p)


@pytest.mark.aot
@pytest.mark.parametrize("p", [0.1, 0.9])
def test_compiled_integers_are_unsigned(p):
    """The interpreter computes with NumPy's types, a compiler by what the language makes of them: 2^32 p is
    within int32 for the first p and beyond it for the second.
    """
    from flava_kernels.triton_ops import dropout as kernels
    from flava_kernels.triton_ops.compiling import compile_launch

    launch = next(own for own in kernels.launches() if own.arch == "sm_90")
    constexprs = {**launch.constexprs, "THRESHOLD": formula.threshold_of(p)}
    ir = compile_launch(dataclasses.replace(launch, constexprs=constexprs)).ir
    assert ir.count("arith.shrui") == 6 and "arith.shrsi" not in ir
    assert ir.count("arith.cmpi uge") == 1 and "arith.cmpi sge" not in ir
