"""Labels of whole samples against torch's losses: one class, or answers that are right to a degree."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from families.bert.bert_peers import randomize
from families.unit.unit_toys import ANSWERS, OBJECTIVES, make_batch, source_of, tiny_config

from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError


def logits_of(objective, hidden):
    head = objective.head
    dense = F.gelu(F.linear(hidden, head.dense.weight, head.dense.bias))
    normed = F.layer_norm(dense, (24,), head.norm.weight, head.norm.bias, 1e-12)
    return F.linear(normed, head.decoder.weight, head.decoder.bias)


@pytest.mark.parametrize("task", ["entailment", "question"])
def test_losses_are_torchs(task):
    objective = randomize(OBJECTIVES[task].build(tiny_config()), std=0.5)
    batch, hidden = make_batch(task), torch.randn(4, 24)
    loss, logits = objective(None, {task: hidden}, batch), logits_of(objective, hidden)
    assert loss.count == 4
    labels = batch["target_labels"]
    if task == "entailment":
        expected = F.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(-1) == labels).sum()
    else:
        scores = torch.zeros(4, ANSWERS)
        for row, (label, score) in enumerate(zip(labels, batch["target_scores"], strict=True)):
            scores[int((row >= batch["target_cu_seqlens"][1:]).sum()), label] = score
        assert (scores > 0).sum(1).tolist() == [1, 3, 2, 1]
        # the published code: the mean over answers, times their number, of each sample
        expected = F.binary_cross_entropy_with_logits(logits, scores) * ANSWERS * 4
        correct = scores[range(4), logits.argmax(-1)].sum()
    torch.testing.assert_close(loss.sum, expected)
    torch.testing.assert_close(loss.metrics["correct"].float(), correct.float())


def test_one_class_for_a_sample_with_several_labels_is_refused():
    config = tiny_config()
    sources = {"pairs": source_of("entailment", max_targets=3)}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(ConfigError, match="source 'pairs': max_targets is 3, but objectives.entailment"):
        check_objectives(config)
