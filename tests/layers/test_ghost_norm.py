"""Ghost batch norm against torch's, group by group; what it keeps, and in which precision."""

import pytest
import torch
from torch import nn

from flava_ds.layers.ghost_norm import GhostBatchNorm


def pair(group: int = 4):
    """Ours and torch's norm of 3 channels with the same random weights and buffers, in fp64."""
    torch.manual_seed(0)
    ours, theirs = GhostBatchNorm(3, group=group).double(), nn.BatchNorm2d(3, momentum=1.0).double()
    for tensor in (*theirs.parameters(), theirs.running_mean):
        tensor.data.normal_()
    theirs.running_var.uniform_(0.5, 2)
    ours.load_state_dict({name: own for name, own in theirs.state_dict().items() if "num_" not in name})
    return ours, theirs


def test_every_group_is_a_batch_of_torch():
    ours, theirs = pair()
    hidden = torch.randn(12, 3, 5, 7, dtype=torch.float64) * 3 + 1
    one, other = (hidden.clone().requires_grad_() for _ in range(2))
    weights = torch.randn_like(hidden)
    (ours(one) * weights).sum().backward()
    means, variances, parts = 0.0, 0.0, []
    for part in other.split(4):
        parts.append(theirs(part))
        means, variances = means + theirs.running_mean, variances + theirs.running_var
    (torch.cat(parts) * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    for own, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    moments, groups = ours.seen
    assert groups == 3
    torch.testing.assert_close(moments, torch.stack([means, variances]))


def test_training_leaves_the_buffers_and_passes_without_a_graph_leave_nothing():
    ours, _ = pair()
    before = [own.clone() for own in ours.buffers()]
    with torch.no_grad():
        ours(torch.randn(8, 3, 2, 2, dtype=torch.float64))
    assert ours.seen is None and all(map(torch.equal, ours.buffers(), before))


def test_an_evaluation_is_torchs():
    ours, theirs = pair()
    hidden = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(hidden), theirs.eval()(hidden))


def test_running_moments_stay_fp32_in_half_precision():
    norm = GhostBatchNorm(2, group=2)
    norm.running_mean.fill_(1.001)
    norm.to(torch.bfloat16)
    assert norm.weight.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
    assert norm.running_mean.tolist() == torch.tensor([1.001, 1.001]).tolist(), "not rounded on the way"
    assert norm(torch.randn(2, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.device("meta"):
        empty = GhostBatchNorm(2).to(torch.bfloat16)
    assert empty.to_empty(device="cpu").running_var.dtype == torch.float32
    assert norm.double().running_var.dtype == torch.float64


def test_incomplete_groups_are_refused():
    with pytest.raises(ValueError, match="6 samples are no whole groups of 4"):
        GhostBatchNorm(3, group=4)(torch.randn(6, 3, 2, 2))
