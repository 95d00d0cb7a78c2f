"""The log-sum-exp exchange against autograd through the whole matrix, on one rank and on several."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from flava_kernels.contrastive import info_nce

BATCH, WIDTH = 6, 5


def features(ranks: int):
    """Normalised features, scale and row mask of all ranks; one rank's mask may be empty."""
    torch.manual_seed(ranks)
    image, text = (F.normalize(torch.randn(ranks * BATCH, WIDTH, dtype=torch.float64), dim=1) for _ in range(2))
    mask = (torch.rand(ranks * BATCH) < 0.6).double()
    if ranks > 1:
        mask[BATCH : 2 * BATCH] = 0
    return image, text, torch.tensor([2.1], dtype=torch.float64), mask


def whole_matrix(image, text, log_scale, mask):
    """Loss, gradients and number of right rows from the full matrix."""
    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, log_scale)]
    similarity = leaves[2].exp() * leaves[0] @ leaves[1].T
    own = torch.arange(len(mask))
    loss = (mask * (F.cross_entropy(similarity, own, reduction="none") + F.cross_entropy(similarity.T, own, reduction="none"))).sum() / 2
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves], ((similarity.argmax(1) == own) * mask).sum()


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_equals_autograd_on_one_rank(chunk_rows):
    inputs = features(1)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
    loss, correct = info_nce(*leaves, inputs[3], chunk_rows=chunk_rows)
    loss.backward()
    expected, gradients, right = whole_matrix(*inputs)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-13, atol=1e-13)
    assert float(correct) == float(right)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-12, atol=1e-13)


def test_gradcheck():
    image, text, log_scale, mask = features(1)
    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, log_scale)]
    assert torch.autograd.gradcheck(lambda i, t, s: info_nce(i, t, s, mask, chunk_rows=4)[0], leaves)


def _rank(rank: int, ranks: int, init: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=ranks)
    image, text, log_scale, mask = features(ranks)
    local = slice(rank * BATCH, (rank + 1) * BATCH)
    leaves = [tensor.clone().requires_grad_() for tensor in (image[local], text[local], log_scale)]
    loss, correct = info_nce(*leaves, mask[local], chunk_rows=4)
    (3.0 * loss).backward()
    results[rank] = (loss.detach(), float(correct), [leaf.grad for leaf in leaves])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_equal_one_process(ranks, tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(ranks, f"file://{tmp_path}/init", results), nprocs=ranks)
        parts = [results[rank] for rank in range(ranks)]
    expected, (d_image, d_text, d_scale), right = whole_matrix(*features(ranks))
    torch.testing.assert_close(sum(loss for loss, _, _ in parts), expected, rtol=1e-13, atol=1e-13)
    assert sum(correct for _, correct, _ in parts) == float(right)
    torch.testing.assert_close(torch.cat([grads[0] for *_, grads in parts]), 3 * d_image, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat([grads[1] for *_, grads in parts]), 3 * d_text, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(sum(grads[2] for *_, grads in parts), 3 * d_scale, rtol=1e-12, atol=1e-13)


def test_a_huge_scale_stays_finite():
    image, text, _, mask = features(1)
    leaves = [tensor.float().requires_grad_() for tensor in (image, text)]
    loss, _ = info_nce(*leaves, torch.tensor([4.6052]), mask.float(), chunk_rows=2)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(leaf.grad).all() for leaf in leaves)
