"""Second derivatives of references that run as autograd functions must not be wrong, and results that get no
gradient cost nothing.
"""

import re

import pytest
import torch
from flava_kernels import OPS, dispatch
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
def test_a_gradient_with_a_graph_is_refused(function):
    """torch.autograd.grad for chosen tensors would go around the refusal of torch's own decorator, and give
    second derivatives without the operator's part.
    """
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="is differentiable once, so create_graph=True cannot go through"):
        torch.autograd.grad(function(x).float().square().sum(), x, create_graph=True)


@pytest.mark.parametrize("custom", [False, True], ids=["function", "custom operator"])
@pytest.mark.parametrize("name", sorted(OPS))
def test_no_second_derivative_is_wrong(monkeypatch, name, custom):
    """Either it is refused, before or in the second differentiation, or it is the definition's."""
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    op = OPS[name]
    for case in op.cases():
        inputs = case.inputs(torch.float64)
        if all(inputs[leaf].numel() for leaf in case.differentiable) and "huge" not in case.name:
            break
    expected = second_derivatives(op.definition, inputs, case.differentiable)
    try:
        found = second_derivatives(op.function, inputs, case.differentiable)
    except RuntimeError as error:
        assert re.search("differentiable once|no autograd formula", str(error))  # noqa: PT017
        return
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def second_derivatives(function, inputs, names):
    """Returns those of the sum of all results, beside a term that has some."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    results = function(**(inputs | leaves))
    total = sum(
        part.sum() for part in (results if isinstance(results, tuple) else (results,)) if part.requires_grad
    )
    first = torch.autograd.grad(total, [*leaves.values()], create_graph=True)
    again = sum(part.square().sum() for part in (*first, *leaves.values()))
    return torch.autograd.grad(again, [*leaves.values()])


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
