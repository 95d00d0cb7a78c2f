"""Word-patch alignment against a solver of linear programs, by hand, and its gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

from flava_ds.batch import Batch
from flava_ds.data.plan import Draft
from flava_ds.objectives import word_patch_alignment
from flava_ds.objectives.word_patch_alignment import (
    WordPatchAlignment,
    WordPatchAlignmentConfig,
    WordRows,
    transport,
)


def solved(cost: np.ndarray) -> float:
    """The least cost of moving words of equal weight onto patches of equal weight, by a linear program."""
    words, patches = cost.shape
    of_words = np.kron(np.eye(words), np.ones(patches))
    of_patches = np.kron(np.ones(words), np.eye(patches))
    weights = np.r_[np.full(words, 1 / words), np.full(patches, 1 / patches)]
    return linprog(cost.ravel(), A_eq=np.r_[of_words, of_patches], b_eq=weights).fun


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("words", "patches"), [(4, 4), (5, 9), (8, 17)])
def test_distances_are_those_of_a_linear_program(words, patches):
    """After 50 iterations in fp32 within 0.12 % on average, after 500 exact for most."""
    u, v, lengths = features(0, 6, words, 16), features(1, 6, patches, 16), torch.full((6,), words)
    cost = 1 - F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).mT
    expected = np.array([solved(own) for own in cost.numpy()])
    published = WordPatchAlignment(WordPatchAlignmentConfig(), "multimodal")
    above = published.distances(u.float(), v.float(), lengths).numpy() / expected - 1
    assert above.mean() <= 1.2e-3 and above.max() <= 2e-3 and above.min() >= -1e-6
    longer = WordPatchAlignment(WordPatchAlignmentConfig(iterations=500), "multimodal")
    assert longer.distances(u, v, lengths).tolist() == pytest.approx(expected.tolist(), rel=2e-4)


def test_a_plan_by_hand():
    """Two words, two patches, each word free on one patch: the plan is the matching, at no cost."""
    cost = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]], dtype=torch.float64)
    plan = transport(cost, torch.tensor([2]), 0.5, 50)
    torch.testing.assert_close(plan, torch.eye(2, dtype=torch.float64)[None] / 2)
    # with one iteration: Sinkhorn's scaling of exp(-cost / 0.5), whose rows are alike
    once = transport(cost, torch.tensor([2]), 0.5, 1)
    near, far = 1 / (1 + np.exp(-4)) / 2, np.exp(-4) / (1 + np.exp(-4)) / 2
    torch.testing.assert_close(once[0], torch.tensor([[near, far], [far, near]], dtype=torch.float64))


def test_padding_and_chunks_change_nothing(monkeypatch):
    objective = WordPatchAlignment(WordPatchAlignmentConfig(), "multimodal")
    u, v, lengths = features(0, 5, 6, 8), features(1, 5, 9, 8), torch.tensor([6, 1, 4, 0, 3])
    together = objective.distances(u, v, lengths)
    alone = [
        objective.distances(u[row : row + 1, :count], v[row : row + 1], lengths[row : row + 1]).item()
        for row, count in enumerate(lengths.tolist())
        if count
    ]
    assert together[lengths > 0].tolist() == pytest.approx(alone, rel=1e-12) and together[3] == 0
    monkeypatch.setattr(word_patch_alignment, "_AT_ONCE", 2 * 6 * 9)
    torch.testing.assert_close(objective.distances(u, v, lengths), together, rtol=1e-12, atol=0)


def batch_of(lengths: list[int], labels: list[int]) -> Batch:
    """What the collator makes of texts with these numbers of tokens."""
    counts, ids = np.array(lengths), np.arange(sum(lengths))
    draft = Draft(seeds=ids[: len(lengths)], matched=np.array(labels) > 0, matching=(ids, counts))
    tensors = {
        "wpa_rows": torch.from_numpy(WordRows()(draft)["wpa_rows"]),
        "itm_labels": torch.tensor(labels),
        "matching_cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
    }
    numbers = {"matching_max_seqlen": max(lengths)}
    return Batch(kind="pair", source="x", size=len(lengths), tensors=tensors, numbers=numbers)


def test_first_and_last_tokens_are_no_words():
    assert batch_of([4, 2, 3], [1, 1, 1])["wpa_rows"].tolist() == [1, 2, 7]


def test_matches_count_for_and_others_against_and_the_plan_is_a_constant():
    batch, patches = batch_of([4, 2, 7, 3], [1, 0, 0, 1]), 5
    objective = WordPatchAlignment(WordPatchAlignmentConfig(), "multimodal")
    rows = features(2, len(batch["wpa_rows"]) + 4 * patches, 6).requires_grad_()
    loss = objective(None, {"multimodal": rows}, batch)
    loss.sum.backward()
    assert loss.count == 4 and torch.isfinite(rows.grad).all()

    # by hand, pair by pair, with plans that are computed first
    words, images = rows.detach()[: len(batch["wpa_rows"])].split([2, 0, 5, 1]), rows.detach()[-4 * patches :]
    parts = [
        (sign, own, images[pair * patches : (pair + 1) * patches])
        for pair, (sign, own) in enumerate(zip((1, -1, -1, 1), words, strict=True))
        if len(own)
    ]

    def cost(own, image):
        return 1 - F.normalize(own, dim=-1) @ F.normalize(image, dim=-1).T

    plans = [
        transport(cost(own, image)[None], torch.tensor([len(own)]), 0.5, 50)[0] for _, own, image in parts
    ]

    def by_hand(*features):
        pairs = zip(parts, plans, features[::2], features[1::2], strict=True)
        return sum(sign * (plan * cost(own, image)).sum() for (sign, _, _), plan, own, image in pairs)

    leaves = [rows.clone().requires_grad_() for _, own, image in parts for rows in (own, image)]
    expected = by_hand(*leaves)
    assert float(loss.sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert torch.autograd.gradcheck(by_hand, leaves)
    gradients = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(rows.grad[: len(batch["wpa_rows"])], torch.cat(gradients[::2]))
    of_images = rows.grad[-4 * patches :].unflatten(0, (4, patches))
    torch.testing.assert_close(of_images[[0, 2, 3]].flatten(0, 1), torch.cat(gradients[1::2]))
    assert not of_images[1].any()


def test_texts_without_a_word_give_a_zero_with_a_graph():
    batch = batch_of([2, 2], [1, 0])
    rows = torch.randn(2 * 3, 4, requires_grad=True)
    loss = WordPatchAlignment(WordPatchAlignmentConfig(), "multimodal")(None, {"multimodal": rows}, batch)
    loss.sum.backward()
    assert loss.sum == 0 and loss.count == 2 and not rows.grad.any()
