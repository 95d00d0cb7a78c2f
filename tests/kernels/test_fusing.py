"""The fused sequence, by hand and against SequenceLayout."""

import pytest
import torch
from flava_kernels import fusing
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.fusing import fuse_sequences

from flava_ds.families.flava.views import image_patch_rows
from flava_ds.layers.pairs import SequenceLayout


def test_fuses_by_hand():
    image = torch.tensor([[10.0], [11.0], [20.0], [21.0]])
    text = torch.tensor([[1.0], [2.0], [3.0]])
    fused = fuse_sequences(torch.tensor([0.5]), image, text, torch.tensor([0, 1, 3], dtype=torch.int32), 2)
    assert fused.flatten().tolist() == [0.5, 10, 11, 1, 0.5, 20, 21, 2, 3]


def test_every_source_row_gets_its_own_gradient():
    torch.manual_seed(0)
    cls, image, text = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4,), (6, 4), (9, 4))
    )
    cu_seqlens = torch.tensor([0, 2, 2, 9], dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda c, i, t: fuse_sequences(c, i, t, cu_seqlens, 7), (cls, image, text)
    )


def test_layout_finds_patches_and_tokens_in_the_fused_sequence():
    patches, lengths = 4, (3, 1, 5)
    cu_seqlens = cu_seqlens_of(lengths)
    layout = SequenceLayout(patches, cu_seqlens, max(lengths))
    image = torch.arange(3 * (1 + patches), dtype=torch.float64)[:, None]
    text = 1000 + torch.arange(sum(lengths), dtype=torch.float64)[:, None]
    fused = fuse_sequences(
        torch.tensor([-1.0], dtype=torch.float64), image, text, cu_seqlens, max(lengths)
    ).flatten()
    flat = torch.arange(3 * patches)
    assert (
        fused[layout.patch_rows(flat)].tolist() == image.flatten()[image_patch_rows(flat, patches)].tolist()
    )
    tokens = torch.arange(sum(lengths))
    assert fused[layout.text_rows(tokens)].tolist() == text.flatten().tolist()
    assert fused[layout.cu_seqlens[:-1].long()].tolist() == [-1.0] * 3
    assert layout.cu_seqlens[-1] == fused.shape[0] and layout.max_seqlen == 2 + patches + 5


def example(dtype=torch.float32):
    torch.manual_seed(0)
    cls, image, text = (
        torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((4,), (6, 4), (5, 4))
    )
    return cls, image, text, cu_seqlens_of((2, 3)), 3


def test_opcheck():
    torch.library.opcheck(torch.ops.flava_kernels.fuse_sequences.default, example())
    grad = torch.randn(13, 4)
    torch.library.opcheck(
        torch.ops.flava_kernels.fuse_sequences_backward.default, (grad, cu_seqlens_of((2, 3)), 3, 3)
    )


def test_compiles_into_one_graph():
    arguments = example()
    compiled = torch.compile(lambda *a: fuse_sequences(*a) * 2, fullgraph=True, backend="aot_eager")
    for function in (compiled, lambda *a: fuse_sequences(*a) * 2):
        function(*arguments).square().sum().backward()
    cls, image, text, *_ = example()
    (fuse_sequences(cls, image, text, *arguments[3:]) * 2).square().sum().backward()
    for twice, once in zip(arguments[:3], (cls, image, text), strict=True):
        torch.testing.assert_close(twice.grad, 2 * once.grad, rtol=1e-6, atol=1e-6)


def test_sums_the_cls_gradient_in_fp32():
    """4,096 samples of 1 + 2^-7 in bf16: a sum in bf16 would stop at 256."""
    cu_seqlens, grad = (
        torch.zeros(4097, dtype=torch.int32),
        torch.full((4096, 1), 1 + 2**-7, dtype=torch.bfloat16),
    )
    d_cls, d_image, d_text = fusing.backward_reference(grad, cu_seqlens, 0)
    assert d_cls.item() == 4128.0 and d_image.numel() == d_text.numel() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: (a[0].double(), *a[1:]), "float64"),
        (lambda a: (*a[:3], a[3].long(), a[4]), "int64"),
        (lambda a: (*a[:3], torch.zeros(65537, dtype=torch.int32), a[4]), "65536 sequences"),
    ],
)
def test_says_what_the_kernels_do_not_take(change, words):
    assert fusing.supports(*example()) is None
    assert words in fusing.supports(*change(example()))


@pytest.mark.triton
def test_the_kernels_take_strided_rows_and_gradients(monkeypatch):
    """NaN stands in the rows around the views; nothing of it may arrive."""
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    cls, image, text, cu_seqlens, longest = (
        value.detach() if isinstance(value, torch.Tensor) else value for value in example()
    )
    expected = fusing.forward_reference(cls, image, text, cu_seqlens)
    around = {
        name: torch.full((rows.shape[0] + 2, 9), torch.nan)
        for name, rows in (("image", image), ("text", text), ("grad", expected))
    }
    for name, rows in (("image", image), ("text", text), ("grad", expected)):
        around[name][1:-1, 2:6] = rows
    views = {name: whole[1:-1, 2:6] for name, whole in around.items()}
    assert torch.equal(fuse_sequences(cls, views["image"], views["text"], cu_seqlens, longest), expected)
    d_cls, d_image, d_text = torch.ops.flava_kernels.fuse_sequences_backward(
        views["grad"], cu_seqlens, longest, 3
    )
    assert torch.equal(d_image, image) and torch.equal(d_text, text)
    torch.testing.assert_close(d_cls, 2 * cls)
