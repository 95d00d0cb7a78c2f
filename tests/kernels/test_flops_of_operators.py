"""What FlopCounterMode reports of operators that run as one, against its own count of the same mathematics in
torch's layers.
"""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from flava_kernels import contrastive, dispatch, linear_cross_entropy, linear_gelu, sigmoid_loss
from torch.utils.flop_counter import FlopCounterMode

T, D, F, R = 7, 16, 24, 8


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


def gelu(function):
    return function(drawn(T, D), drawn(F, D), drawn(F)).sum()


def cross_entropy(function):
    return function(drawn(T, D), drawn(F, D), drawn(F), torch.arange(3), torch.tensor([0, 2, 5]))[0]


def similarities(function):
    return function(drawn(T, R), drawn(T, R), torch.zeros(1, requires_grad=True), torch.ones(T))[0]


def answers(function):
    rest = (torch.zeros(1, requires_grad=True) for _ in range(2))
    return function(drawn(T, R), drawn(T, R), *rest, torch.ones(T))[0]


def gelu_operator(*arguments):
    return torch.ops.flava_kernels.linear_gelu(*arguments)[0]


def cross_entropy_operator(*arguments):
    return torch.ops.flava_kernels.linear_cross_entropy(
        *arguments, [True] * 3, linear_cross_entropy.LOGITS_BUDGET_BYTES
    )


@pytest.mark.parametrize(
    ("call", "operator", "definition", "recomputed"),
    [
        (gelu, gelu_operator, linear_gelu.definition, 0),
        (cross_entropy, cross_entropy_operator, linear_cross_entropy.definition, 0),
        (similarities, contrastive.info_nce, contrastive.definition, 2 * T * T * R),
        (answers, sigmoid_loss.sigmoid_loss, sigmoid_loss.definition, 0),
    ],
)
def test_counts_what_plain_layers_count_and_what_is_computed_again(
    monkeypatch, call, operator, definition, recomputed
):
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: True)  # as on a GPU
    counted = []
    for function in (operator, definition):
        with FlopCounterMode(display=False) as counter:
            call(function).backward()
        counted.append(counter.get_total_flops())
    assert counted[1] > 0
    assert counted[0] == counted[1] + recomputed


def test_a_loss_without_gradients_is_one_product():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        arguments = drawn(T, D), drawn(F, D), drawn(F), torch.arange(T), None
        torch.ops.flava_kernels.linear_cross_entropy(
            *arguments, [False] * 3, linear_cross_entropy.LOGITS_BUDGET_BYTES
        )
    assert counter.get_total_flops() == 2 * T * F * D
