"""Summed cross-entropy of a linear classifier against torch in fp64."""

import pytest
import torch
import torch.nn.functional as F
from flava_kernels.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_equals_cross_entropy(rows):
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((rows, 12), (97, 12), (97,))]
    copies = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    labels = torch.randint(97, (rows,))
    loss, correct = linear_cross_entropy(*inputs, labels)
    logits = F.linear(*copies)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    assert float(correct) == (logits.argmax(-1) == labels).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(inputs, copies, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_no_rows_give_zero_and_zero_gradients():
    inputs = [torch.randn(*shape, requires_grad=True) for shape in ((0, 12), (97, 12), (97,))]
    loss, correct = linear_cross_entropy(*inputs, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == float(correct) == 0.0
    assert all(float(tensor.grad.abs().sum()) == 0.0 for tensor in inputs)


def test_gradcheck():
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,))]
    labels = torch.randint(7, (5,))
    assert torch.autograd.gradcheck(lambda h, w, b: linear_cross_entropy(h, w, b, labels)[0], inputs)


def test_half_precision_keeps_the_softmax_in_fp32():
    torch.manual_seed(0)
    inputs = [torch.randn(*shape).bfloat16().requires_grad_() for shape in ((16, 12), (300, 12), (300,))]
    copies = [tensor.detach().double().requires_grad_() for tensor in inputs]
    labels = torch.randint(300, (16,))
    loss, _ = linear_cross_entropy(*inputs, labels)
    expected = F.cross_entropy(F.linear(*copies), labels, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=4e-3, atol=0)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(inputs, copies, strict=True):
        assert float((ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()) < 6e-3
