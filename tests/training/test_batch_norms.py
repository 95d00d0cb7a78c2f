"""Running moments by hand, and what a step tells about its norms."""

import pytest
import torch

from flava_ds.layers.ghost_norm import GhostBatchNorm
from flava_ds.training.batch_norms import STATE, RunningMoments


def statistics(values, groups: int) -> dict[str, torch.Tensor]:
    return {f"{STATE}/moments": torch.tensor(values), f"{STATE}/groups": torch.tensor(float(groups))}


def test_moments_are_averaged_equally_at_first_and_then_by_momentum():
    norms = (GhostBatchNorm(2), GhostBatchNorm(1))
    state = RunningMoments(norms, 0.75)
    kept = {name: [] for name in ("mean", "variance")}
    for number in range(1, 7):
        state.after_update(number, None, statistics([[2.0 * number, 0, 8], [4.0 * number, 2, 6]], 2))
        kept["mean"].append(norms[0].running_mean.tolist())
        kept["variance"].append(norms[0].running_var.tolist())
        state.after_update(number, None, {"text_prefix_lm/count": torch.ones(())})  # no images: no change
    assert [own[0] for own in kept["mean"][:4]] == pytest.approx([1, 1.5, 2, 2.5])
    assert kept["mean"][4][0] == pytest.approx(2.5 + (5 - 2.5) / 4)
    assert [own[0] for own in kept["variance"][:4]] == pytest.approx([2, 3, 4, 5])
    assert (norms[1].running_mean.item(), norms[1].running_var.item()) == (4, 3)
    assert state.tensors().keys() == {"updates", "0", "1", "2", "3"} and float(state.updates) == 6
    assert state.tensors()["0"] is norms[0].running_mean
