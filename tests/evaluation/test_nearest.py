"""Chunked search equals the whole matrix; recall and its chance equal what counting gives."""

import itertools

import numpy as np
import pytest
import torch

from flava_ds.evaluation.nearest import chance_of_recall, recall, top_k


@pytest.mark.parametrize(
    "queries, keys, k, chunk_rows", [(7, 23, 5, 4), (5, 3, 5, 2), (1, 9, 1, 100), (4, 8, 8, 3)]
)
def test_chunks_find_what_the_whole_matrix_finds(queries, keys, k, chunk_rows):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (queries, keys))
    expected = (a @ b.T).argsort(dim=1, descending=True)[:, :k]
    assert torch.equal(top_k(a, b, k, chunk_rows=chunk_rows), expected)


def test_recall_counts_a_query_once_however_many_keys_are_right():
    found = np.array([["a", "b", "a"], ["c", "b", "b"], ["c", "c", "c"]])
    right = np.array(["a", "b", "a"])
    assert recall(found, right, 1) == pytest.approx(1 / 3)
    assert recall(found, right, 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_chance_is_the_mean_over_all_orders(k):
    positives, keys = np.array([1, 2, 2, 4]), 6
    expected = np.mean(
        [
            np.mean([any(i < p for i in drawn) for drawn in itertools.combinations(range(keys), k)])
            for p in positives
        ]
    )
    assert chance_of_recall(positives, keys, k) == pytest.approx(expected)


def test_chance_with_fewer_keys_than_k_is_certainty():
    assert chance_of_recall(np.array([1]), 3, 5) == 1.0
