"""Second derivatives of references that run as autograd functions must not be wrong, and results that get no
gradient cost nothing.
"""

import pytest
import torch
from flava_kernels.attention import varlen_attention
from flava_kernels.layer_norm import layer_norm
from flava_kernels.linear_cross_entropy import linear_cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

X = torch.linspace(-1, 1, 48).reshape(6, 8)


def attention(x):
    return varlen_attention(x.reshape(2, 3, 1, 8), torch.tensor([0, 2], dtype=torch.int32), 2)


def norm(x):
    return layer_norm(
        x.bfloat16(), torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True), 1e-5
    )


def cross_entropy(rows):
    def loss(x):
        return linear_cross_entropy(x[:rows, :4], x[:, :4], torch.zeros(6), torch.arange(rows))[0]

    return loss


@pytest.mark.parametrize(
    "function",
    [attention, norm, cross_entropy(2), cross_entropy(5)],
    ids=["attention", "layer_norm", "keeps G", "keeps dW"],
)
@pytest.mark.parametrize("reduction", [torch.sum, lambda y: y.square().sum()], ids=["sum", "squares"])
def test_second_derivatives_are_refused_beside_terms_that_have_them(function, reduction):
    """The gradient of a sum is a constant, so torch's own decorator would let it pass; the other term hides
    that nothing came back.
    """
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(reduction(function(x).float()), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (first.square().sum() + x.square().sum()).backward()


@pytest.mark.parametrize(
    "function", [attention, norm, cross_entropy(2)], ids=["attention", "layer_norm", "cross_entropy"]
)
def test_first_derivatives_are_the_same_with_a_graph_of_them(function):
    x = X.clone().requires_grad_()
    plain, with_graph = (
        torch.autograd.grad(function(x).float().square().sum(), x, create_graph=graph)[0]
        for graph in (False, True)
    )
    assert torch.equal(plain, with_graph)


class Names(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.found.append(function.__name__)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("function", [attention, cross_entropy(2)], ids=["attention", "cross_entropy"])
def test_results_that_get_no_gradient_cost_no_zeros(function):
    """Log-sum-exps, and gradients that wait for the backward pass, are results of the custom operators."""
    x = X.to("meta").requires_grad_()
    with torch.device("meta"):
        result = function(x).sum()
    with Names() as names:
        result.backward()
    assert any("backward" in name for name in names.found)
    assert not [name for name in names.found if name.startswith("zeros")]
