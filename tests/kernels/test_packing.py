"""The fused sequence, by hand and against SequenceLayout."""

import torch
from flava_kernels.packing import fuse_sequences

from flava_ds.batch import SequenceLayout, image_patch_rows


def test_fuses_by_hand():
    image = torch.tensor([[10.0], [11.0], [20.0], [21.0]])
    text = torch.tensor([[1.0], [2.0], [3.0]])
    fused = fuse_sequences(torch.tensor([0.5]), image, text, torch.tensor([0, 1, 3], dtype=torch.int32))
    assert fused.flatten().tolist() == [0.5, 10, 11, 1, 0.5, 20, 21, 2, 3]


def test_every_source_row_gets_its_own_gradient():
    torch.manual_seed(0)
    cls, image, text = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4,), (6, 4), (9, 4)))
    cu_seqlens = torch.tensor([0, 2, 2, 9], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda c, i, t: fuse_sequences(c, i, t, cu_seqlens), (cls, image, text))


def test_layout_finds_patches_and_tokens_in_the_fused_sequence():
    patches, lengths = 4, (3, 1, 5)
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    layout = SequenceLayout(patches, cu_seqlens, max(lengths))
    image = torch.arange(3 * (1 + patches), dtype=torch.float64)[:, None]
    text = 1000 + torch.arange(sum(lengths), dtype=torch.float64)[:, None]
    fused = fuse_sequences(torch.tensor([-1.0], dtype=torch.float64), image, text, cu_seqlens).flatten()
    flat = torch.arange(3 * patches)
    assert fused[layout.patch_rows(flat)].tolist() == image.flatten()[image_patch_rows(flat, patches)].tolist()
    tokens = torch.arange(sum(lengths))
    assert fused[layout.text_rows(tokens)].tolist() == text.flatten().tolist()
    assert fused[layout.cu_seqlens[:-1].long()].tolist() == [-1.0] * 3
    assert layout.cu_seqlens[-1] == fused.shape[0] and layout.max_seqlen == 2 + patches + 5
