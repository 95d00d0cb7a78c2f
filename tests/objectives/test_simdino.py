"""SimDINO against its published loss written out, and a run in several topologies."""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
import torch.nn.functional as F
from sample_batches import tiny_config
from stranger_runs import STEPS, prove, stranger_config
from test_dino import crops_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.families.flava.task import build_task
from flava_ds.objectives.simdino import SimdinoConfig
from flava_ds.optimizers.adamw import AdamWConfig

SMALL = SimdinoConfig(
    head_hidden_size=64,
    bottleneck_size=8,
    local_crops=3,
    local_size=8,
    teacher_momentum=0.8,
    stochastic_depth=0.0,
)


def test_the_loss_is_the_published_one():
    task = build_task(tiny_config(objectives={"simdino": SMALL}))
    objective, teacher = task.objectives["simdino"], task.states["simdino.teacher"]
    with torch.no_grad(), FlopCounterMode(display=False) as teaching, sdpa_kernel(SDPBackend.MATH):
        for number, parameter in enumerate(teacher.network.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
        (batch,) = teacher.complete_step([teacher.complete(crops_of(task))])
    crops = [c for name in ("global_crops", "local_crops") for c in batch[name].unbind(1)]
    student = [objective.head(task.model.image_encoder.first_tokens(own)) for own in crops]
    with torch.no_grad():
        taught = [teacher.head(teacher.encoder.first_tokens(own)) for own in crops[:2]]
    cosines = [
        F.cosine_similarity(target, own, dim=1)
        for v, target in enumerate(taught)
        for u, own in enumerate(student)
        if u != v
    ]
    rates = [torch.logdet(torch.eye(8) + 8 / (batch.size * 0.5) * own.T @ own) / 2 for own in student[:2]]
    factor = (8 + batch.size) / (8 * batch.size)
    expected = 1 - torch.stack(cosines).mean() - factor * torch.stack(rates).mean()
    with FlopCounterMode(display=False) as learning, sdpa_kernel(SDPBackend.MATH):
        loss = objective(task.model, {}, batch)
    counted = 3 * learning.get_total_flops() + teaching.get_total_flops()
    assert task.flops(batch) == pytest.approx(counted, rel=5e-3), "each crop passes the head once"
    assert len(cosines) == 2 * 5 - 2 and loss.count == batch.size
    torch.testing.assert_close(loss.sum / loss.count, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.metrics["rate"] / loss.count, torch.stack(rates).mean().detach())
    gradients = torch.autograd.grad(loss.sum / loss.count, list(objective.parameters()), retain_graph=True)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, list(objective.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_is_the_same_in_every_topology(run_ranks, tmp_path):
    # Small steps: the untrained head's outputs are tiny, and normalised, so rounding would grow.
    own = {"objectives": {"simdino": SMALL}, "optimizer": AdamWConfig(lr=5e-5, eps=1e-3)}
    config = stranger_config(tmp_path, name="simdino", kind="image", **own)
    curve = prove(run_ranks, config, zero3=False)
    assert len({line["metric/coding_rate/simdino"] for line in curve}) == STEPS
    assert all(-1 < line["metric/cosine/simdino"] < 1 for line in curve)
