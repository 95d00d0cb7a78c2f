"""Nearest keys of many queries, in chunks, so that the full query x key matrix never exists."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK_ROWS = 1024


def top_k(queries: Tensor, keys: Tensor, k: int, *, chunk_rows: int = CHUNK_ROWS) -> Tensor:
    """Returns the indices of the k keys with the largest inner product with each query, best first.

    Shapes:
        queries  [q r]
        keys     [m r]
        returns  [q min(k, m)]  int64
    """
    return torch.cat([found for _, found in best_of(queries, keys, k, chunk_rows=chunk_rows)])


def best_of(
    queries: Tensor, keys: Tensor, k: int, *, chunk_rows: int = CHUNK_ROWS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, for some queries after the others, the k largest inner products and their keys, best first.

    Shapes: as for top_k; yields [rows min(k, m)] twice, the keys int64
    """
    k = min(k, keys.shape[0])
    for rows in queries.split(chunk_rows):
        values = torch.empty(rows.shape[0], 0, dtype=rows.dtype, device=rows.device)
        indices = torch.empty(rows.shape[0], 0, dtype=torch.long, device=rows.device)
        for start in range(0, keys.shape[0], chunk_rows):
            scores = rows @ keys[start : start + chunk_rows].T
            best, where = scores.topk(min(k, scores.shape[1]), dim=1)
            values, order = torch.cat([values, best], dim=1).topk(
                min(k, values.shape[1] + best.shape[1]), dim=1
            )
            indices = torch.cat([indices, where + start], dim=1).gather(1, order)
        yield values, indices


def recall(found: np.ndarray, right: np.ndarray, k: int) -> float:
    """Returns the share of queries with a correct key among their first k.

    Shapes:
        found  [q k']  labels of the found keys, best first
        right  [q]     the correct label
    """
    return float((found[:, :k] == right[:, None]).any(axis=1).mean())


def chance_of_recall(positives: np.ndarray, keys: int, k: int) -> float:
    """Returns the expected recall at k of a random order; `positives` are the correct keys per query.

    One minus the probability that all k drawn keys are wrong, C(keys - p, k) / C(keys, k), averaged over the
    queries.
    """
    k = min(k, keys)
    numbers, counts = np.unique(positives, return_counts=True)
    hit = [1 - math.comb(keys - int(p), k) / math.comb(keys, k) for p in numbers]
    return float(np.average(hit, weights=counts))
