"""How recall of what a model made is counted."""

import numpy as np
import pytest
import torch

from flava_ds.demo.evaluation.drawing import recalls


def test_recall_counts_concepts_among_the_first():
    keys = torch.eye(8)
    concepts = np.array(list("aabcdefg"))
    queries = keys[[1, 0, 2, 3, 4, 7, 6, 5]]  # the two of `a` find each other's, `e` and `g` are swapped
    found = recalls("x@", queries, keys, concepts)
    assert found["x@1"] == 6 / 8 and found["x@1/chance"] == pytest.approx((2 * 2 / 8 + 6 / 8) / 8)
    assert found["x@5"] >= found["x@1"] and set(found) == {"x@1", "x@5", "x@1/chance", "x@5/chance"}
