"""Sinkhorn's iteration by hand, as a matrix, and over parts and ranks."""

from __future__ import annotations

import math

import pytest
import torch

from flava_ds.objectives.sinkhorn import balanced
from flava_ds.ranks.distributed import start


def by_definition(scores: torch.Tensor, iterations: int) -> torch.Tensor:
    """Divides a matrix's columns by their sums, then its rows."""
    matrix = scores.double().exp()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(0)
        matrix = matrix / matrix.sum(1, keepdim=True)
    return matrix


def test_two_samples_by_hand():
    # exp: [[3, 1], [3, 1]]. Both say the first; divided by the columns' sums 6 and 2, nobody says anything.
    same = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    torch.testing.assert_close(balanced([same], 1)[0], torch.full((2, 2), 0.5))
    # exp: [[3, 1], [1, 1]]; columns sum to 4 and 2: [[3/4, 1/2], [1/4, 1/2]]; rows: 5/4 and 3/4.
    one = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    torch.testing.assert_close(balanced([one], 1)[0], torch.tensor([[3 / 5, 2 / 5], [1 / 3, 2 / 3]]))


def test_prototypes_get_equal_shares():
    scores = 4 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5.0)
    found = balanced([scores], 3)[0]
    torch.testing.assert_close(found.double(), by_definition(scores, 3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(40))
    torch.testing.assert_close(balanced([scores], 100)[0].sum(0), torch.full((5,), 8.0), rtol=1e-3, atol=1e-3)
    assert scores.softmax(1).sum(0).max() > 15
    huge = balanced([1e4 * scores])[0]
    assert torch.isfinite(huge).all()


def parts_of_rank(scores: torch.Tensor) -> list[torch.Tensor]:
    """On every rank: the balanced parts of its half, in two micro-batches."""
    world = start(60)
    return balanced(scores.tensor_split(world.size)[world.rank].view(2, 3, 2, 7).unbind(0))


@pytest.mark.distributed
def test_micro_batches_and_ranks_are_one_matrix(run_ranks):
    scores = 3 * torch.randn(24, 7, generator=torch.Generator().manual_seed(1))
    expected = by_definition(scores, 3).view(4, 3, 2, 7)
    found = torch.stack(sum(run_ranks(parts_of_rank, 2, scores), []))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
