"""Masked words with a teacher's predictions among the targets, by hand and against plain masked words."""

import math
from dataclasses import replace

import pytest
import torch
from families.albef.albef_peers import completed, make_batch, tiny_config

from flava_ds.families.albef.task import build_task
from flava_ds.objectives.distilled_text import DistilledText, DistilledTextConfig


class Given(torch.nn.Module):
    """A head that gives its rows as logits."""

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def test_the_loss_of_one_token_by_hand():
    """Odds of 3 to 1 for the student, 1 to 1 for the teacher; the token is the first of two."""
    config = DistilledTextConfig(distillation=0.4, tied_decoder=False)
    batch = make_batch().having(
        mlm_rows=torch.tensor([0]), mlm_labels=torch.tensor([0]), teacher_logits=torch.zeros(1, 2)
    )
    student = {"multimodal_masked": torch.tensor([[math.log(3), 0.0]])}
    found = DistilledText(config, Given())(None, student, batch)
    hard, soft = math.log(4 / 3), (math.log(4 / 3) + math.log(4)) / 2
    assert float(found.sum) == pytest.approx(0.6 * hard + 0.4 * soft, rel=1e-6)
    assert float(found.metrics["correct"]) == 1 and found.count == 1


def test_it_begins_as_plain_masked_words_and_a_teacher_that_is_the_student_adds_no_gradient():
    task = build_task(tiny_config()).double()
    task.states["teacher"].network.double()
    (batch,) = completed(task, make_batch())
    plain = {}
    for steps, share in ((10, 0.0), (0, 1.0)):
        task.objectives["mlm"].config = DistilledTextConfig(distillation=1.0, distillation_steps=steps)
        task.zero_grad()
        loss = task.losses(replace(batch, step=0), only={"mlm"})["mlm"].sum
        loss.backward()
        plain[share] = loss.item(), task.objectives["mlm"].head.bias.grad.clone()
    labels = batch["mlm_labels"]
    expected = torch.nn.functional.cross_entropy(batch["teacher_logits"], labels, reduction="sum")
    assert plain[0.0][0] == pytest.approx(expected.item(), rel=1e-9)
    assert plain[0.0][1].abs().max() > 1e-2
    assert plain[1.0][1].abs().max() < 1e-12, "softmax minus softmax"
    measured = task.eval().losses(batch, only={"mlm"})["mlm"].sum.item()
    assert measured == pytest.approx(plain[0.0][0], rel=1e-12), "evaluations ask for the token alone"
