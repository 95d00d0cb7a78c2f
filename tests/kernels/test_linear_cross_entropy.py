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
