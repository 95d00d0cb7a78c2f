"""Masked accuracy and loss equal plain cross-entropy over the masked places; chance is the most frequent
target."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sample_runs import frozen, world

from flava_ds.demo.evaluation.masked import PREDICTS, masked_inputs, measure
from flava_ds.evaluation.frozen_model import Lacking


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def test_masking_is_found_by_what_it_masks_and_not_by_its_name(inputs_and_module):
    inputs = inputs_and_module[0]
    own = inputs.config.objectives
    for name in PREDICTS:
        assert inputs.masking(name) is own[name]
    config = dataclasses.replace(inputs.config, objectives={"mlm": own["mmm_text"]})
    other = dataclasses.replace(inputs, config=config)
    assert other.masking("mmm_text") is own["mmm_text"] and other.masking("mlm") is None


def plain_logits(module, masked, name):
    """Runs the encoders one by one and picks the masked rows by hand: [CLS_M, CLS_I, patches, text] for a
    pair."""
    model, head = module.model, module.objectives[name].head
    patches = model.config.image.num_patches
    if masked.pixels is not None:
        [image] = model.image_encoder(masked.pixels, masked.patches, clean=False)
    if masked.masked_texts is not None:
        lengths = [len(text) for text in masked.masked_texts]
        cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        [text] = model.text_encoder(
            [torch.from_numpy(np.concatenate(masked.masked_texts))], cu_seqlens, max(lengths)
        )
    if name == "mlm":
        return head.logits(text.last_hidden_state()[masked.token_rows])
    if name == "mim":
        samples, places = masked.patches.nonzero(as_tuple=True)
        return head.logits(
            image.last_hidden_state().view(-1, 1 + patches, head.dense.weight.shape[0])[samples, 1 + places]
        )
    from flava_ds.layers.pairs import SequenceLayout

    fused = model.fuse(
        image.packed, text.packed, SequenceLayout(patches, cu_seqlens, max(lengths))
    ).last_hidden_state()
    starts = cu_seqlens[:-1] + (2 + patches) * torch.arange(len(lengths))
    if name == "mmm_image":
        samples, places = masked.patches.nonzero(as_tuple=True)
        return head.logits(fused[starts[samples] + 2 + places])
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[masked.token_rows]
    return head.logits(fused[starts[sample] + 2 + patches + masked.token_rows - cu_seqlens[:-1][sample]])


CASES = [("text", "mlm", "texts"), ("image", "mim", "unseen_style")]
CASES += [("pair", name, "unseen_style") for name in ("mmm_text", "mmm_image")]


@pytest.mark.parametrize("kind, name, samples", CASES)
def test_numbers_are_those_of_plain_torch(inputs_and_module, kind, name, samples):
    inputs, module = inputs_and_module
    model = frozen(inputs, module)
    metrics = measure(model, inputs)
    [masked] = masked_inputs(model, inputs, kind, getattr(inputs, samples), 1000)
    with torch.no_grad():
        logits = plain_logits(module, masked, name)
    labels = masked.labels(name)
    assert len(labels) > 10
    assert metrics[f"masked/{name}/loss_nats"] == pytest.approx(
        float(F.cross_entropy(logits, labels)), rel=1e-5
    )
    assert metrics[f"masked/{name}/accuracy"] == pytest.approx(
        float((logits.argmax(1) == labels).float().mean())
    )
    assert metrics[f"masked/{name}/accuracy/chance"] == pytest.approx(
        int(labels.bincount().max()) / len(labels)
    )


def test_targets_are_the_codes_and_words_under_the_mask(inputs_and_module):
    inputs = inputs_and_module[0]
    [masked] = masked_inputs(frozen(*inputs_and_module), inputs, "pair", inputs.unseen_style, 1000)
    texts, changed = (torch.from_numpy(np.concatenate(ids)) for ids in (masked.texts, masked.masked_texts))
    assert torch.equal(masked.patch_rows, masked.patches.flatten().nonzero()[:, 0])
    assert torch.equal(masked.token_labels, texts[masked.token_rows])
    codes = inputs.codebook.encode(inputs.unseen_style.pixels(inputs.config.codebook.image_size))
    assert torch.equal(masked.codes, codes)
    assert set((texts != changed).nonzero()[:, 0].tolist()) <= set(masked.token_rows.tolist())


def test_masks_are_the_same_every_time_and_differ_between_samples(inputs_and_module):
    inputs, model = inputs_and_module[0], frozen(*inputs_and_module)
    [first], [again] = (
        list(masked_inputs(model, inputs, "image", inputs.unseen_style, 10)) for _ in range(2)
    )
    assert torch.equal(first.patches, again.patches)
    assert len(np.unique(first.patches.numpy(), axis=0)) > 3


def test_without_a_codebook_text_is_still_measured(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    metrics = measure(frozen(inputs, module), inputs)
    assert {name.split("/")[1] for name in metrics} == {"mlm", "mmm_text"}


def test_with_nothing_to_measure_the_reason_is_named(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    for name in ("mlm", "mmm_text"):
        del module.objectives[name]
    with pytest.raises(Lacking, match="codebook_weights"):
        measure(frozen(inputs, module), inputs)
    for name in ("mim", "mmm_image"):
        del module.objectives[name]
    with pytest.raises(Lacking, match="needs Scorer .* trains no masked objective"):
        measure(frozen(inputs, module), inputs)
