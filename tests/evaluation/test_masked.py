"""Masked accuracy and loss equal plain cross-entropy over the masked places; chance is the most frequent target."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sample_runs import world

from flava_ds.evaluation.base import Unavailable
from flava_ds.evaluation.encoding import FrozenModel
from flava_ds.evaluation.masked import Masked, masked_batches
from flava_ds.families.flava.views import Kind


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("kind, name, samples", [(Kind.TEXT, "mlm", "texts"), (Kind.IMAGE, "mim", "unseen_style"), (Kind.PAIR, "mmm_text", "unseen_style")])
def test_numbers_are_those_of_plain_torch(inputs_and_module, kind, name, samples):
    inputs, module = inputs_and_module
    metrics = Masked(inputs).run(FrozenModel(module, inputs))
    objective = module.objectives[name]
    [batch] = masked_batches(inputs, kind, getattr(inputs, samples), 1000)
    with torch.no_grad():
        encoded = module.model.encode(batch, objective.needs)
        rows = objective.reads(module.model, batch)[objective.view]
        logits = objective.head.logits(encoded[objective.view].rows(rows))
    labels = batch["image_codes"].flatten()[batch["mim_rows"]] if kind == Kind.IMAGE else batch["mlm_labels"]
    assert len(labels) > 10
    assert metrics[f"masked/{name}/loss_nats"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert metrics[f"masked/{name}/accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert metrics[f"masked/{name}/accuracy/chance"] == pytest.approx(int(labels.bincount().max()) / len(labels))


def test_targets_are_the_codes_and_words_under_the_mask(inputs_and_module):
    inputs, _ = inputs_and_module
    [batch] = masked_batches(inputs, Kind.PAIR, inputs.unseen_style, 1000)
    assert torch.equal(batch["mim_rows"], batch["bool_masked_pos"].flatten().nonzero()[:, 0])
    assert torch.equal(batch["mlm_labels"], batch["input_ids"][batch["mlm_rows"]])
    assert torch.equal(batch["image_codes"], inputs.codebook.encode(inputs.unseen_style.pixels(inputs.config.codebook.image_size)))
    changed = (batch["input_ids"] != batch["input_ids_masked"]).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(batch["mlm_rows"].tolist())


def test_masks_are_the_same_every_time_and_differ_between_samples(inputs_and_module):
    inputs, _ = inputs_and_module
    [first], [again] = (list(masked_batches(inputs, Kind.IMAGE, inputs.unseen_style, 10)) for _ in range(2))
    assert torch.equal(first["bool_masked_pos"], again["bool_masked_pos"])
    assert len(np.unique(first["bool_masked_pos"].numpy(), axis=0)) > 3


def test_without_a_codebook_text_is_still_measured(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    metrics = Masked(inputs).run(FrozenModel(module, inputs))
    assert {name.split("/")[1] for name in metrics} == {"mlm", "mmm_text"}


def test_with_nothing_to_measure_the_reason_is_named(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    for name in ("mlm", "mmm_text"):
        del module.objectives[name]
    with pytest.raises(Unavailable, match="codebook_weights"):
        Masked(inputs).run(FrozenModel(module, inputs))
