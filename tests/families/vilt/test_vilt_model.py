"""ViLT against transformers on random weights, its counts of parameters and work, and what it refuses."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from families.family_checks import check_decay, check_recomputation, check_users, step
from families.vilt.vilt_peers import (
    VIEW,
    difference,
    inputs_of,
    labels_of,
    make_batch,
    our_model,
    own_tensors,
    randomize,
    their_vilt,
    tiny_config,
)
from flava_kernels.dropout import kept
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config import Config, SourceConfig
from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError
from flava_ds.families.vilt.config import ViltConfig
from flava_ds.families.vilt.hf import entries, heads_of
from flava_ds.families.vilt.model import TEXTS, layout_of
from flava_ds.families.vilt.task import ViltTask, build_task
from flava_ds.layers.words import PackedIds
from flava_ds.layouts import to_ours
from flava_ds.objectives.dino import DinoConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.masked_image import MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.recipes.vilt_base import vilt_base


def gradients_of(theirs, config):
    """Their gradients by our names; zeros where they have none."""
    found = {
        name: torch.zeros_like(own) if own.grad is None else own.grad
        for name, own in theirs.named_parameters()
    }
    return to_ours(own_tensors(found), entries(config.model, heads_of(True)), "their gradients")


def apart(task, expected):
    """How far each of our gradients is from theirs."""
    ours = {name: own.grad for name, own in task.named_parameters() if name in expected}
    assert ours.keys() == expected.keys()
    assert all(not expected[name].any() for name, own in ours.items() if own is None)
    return {name: difference(own, expected[name]) for name, own in ours.items() if own is not None}


@pytest.mark.parametrize(
    ("dtype", "states", "gradients"), [(torch.float32, 1e-5, 3e-5), (torch.float64, 1e-12, 1e-12)]
)
@pytest.mark.parametrize("size", [(12, 12), (8, 20)])
def test_transformers_agree(dtype, states, gradients, size, told):
    """On masked texts of several lengths, and on images of another shape. Theirs come with their patches
    in a random order, so what is compared of them is their CLS and the sum.
    """
    config, batch = tiny_config(), make_batch(size=size)
    told.parity("vilt", "ViltModel", dtype, states, gradients)
    theirs = their_vilt(config).to(dtype)
    task = our_model(config, theirs)
    inputs, length = inputs_of(batch), batch.numbers["max_seqlen"]
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    output = theirs.vilt(**inputs)
    image = task.model.embed_images(inputs["pixel_values"])
    texts = PackedIds.of(batch, *TEXTS[VIEW])
    layout, encoded = layout_of(texts, image[1].shape[1]), task.model.encode_pairs(image, texts)
    hidden, mask = encoded.last_hidden_state(), inputs["attention_mask"].bool()
    rows = layout.text_rows(torch.arange(len(batch["input_ids"])))
    expected = output.last_hidden_state
    assert told.output(difference(hidden[rows], expected[:, :length][mask])) <= states
    assert told.output(difference(hidden[layout.cu_seqlens[:-1].long()], expected[:, length])) <= states
    patches = hidden[layout.patch_rows(torch.arange(image[1].shape[:2].numel()))].unflatten(0, (4, -1))
    assert told.output(difference(patches.sum(1), expected[:, length + 1 :].sum(1))) <= states
    assert (
        told.output(difference(task.model.pooled(hidden[layout.text_starts]), output.pooler_output)) <= states
    )

    weights = torch.randn(2, 24, dtype=dtype)
    for texts, pooled in (
        (hidden[rows], task.model.pooled(hidden[layout.text_starts])),
        (expected[:, :length][mask], output.pooler_output),
    ):
        (((texts**2) @ weights[0]).sum() + (pooled @ weights[1]).sum()).backward()
    found = apart(task, gradients_of(theirs, config))
    told.gradients(found, gradients)


def test_the_masked_loss_is_theirs(told):
    config, batch = tiny_config(), make_batch()
    told.parity("vilt", "ViltForMaskedLM, loss", torch.float64, 1e-6, 3e-5)
    theirs = their_vilt(config).double()
    task = our_model(config, theirs)
    output = theirs(**inputs_of(batch), labels=labels_of(batch))
    loss = task.losses(batch, only={"mmm_text"})["mmm_text"]
    assert (
        told.output(difference(loss.sum / loss.count, output.loss)) <= 1e-6
    )  # logits of the head are summed in fp32
    (loss.sum / loss.count).backward()
    output.loss.backward()
    found = apart(task, gradients_of(theirs, config))
    told.gradients(found, 3e-5)


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        task = ViltTask(dataclasses.replace(tiny_config(tied=False), model=ViltConfig()))
    counts = [sum(parameter.numel() for parameter in own.parameters()) for own in (task.model, task)]
    assert counts == [111_595_008, 135_660_092]


def test_every_parameter_gets_a_gradient_from_the_objective_that_says_so():
    check_users(build_task, tiny_config(), make_batch())


def test_each_view_is_the_image_with_its_own_text():
    """The masked pass has the sample's own text, the other one the text to be matched."""
    batch = make_batch()
    task = randomize(build_task(tiny_config())).double()
    both = task.model.encode(batch, TEXTS.keys())
    for view in TEXTS:
        texts = PackedIds.of(batch, *TEXTS[view])
        for row in range(batch.size):
            start, end = texts.cu_seqlens[row : row + 2].tolist()
            alone = dataclasses.replace(
                texts,
                ids=texts.ids[start:end],
                cu_seqlens=torch.tensor([0, end - start]).int(),
                max_seqlen=end - start,
            )
            image = task.model.embed_images(batch["pixel_values"][row : row + 1])
            expected = task.model.encode_pairs(image, alone).last_hidden_state()
            bounds = task.model.layout(view, batch).cu_seqlens[row : row + 2].tolist()
            torch.testing.assert_close(both[view].last_hidden_state()[slice(*bounds)], expected)


def test_activation_checkpointing_changes_no_gradient():
    check_recomputation(build_task, tiny_config(), lambda task: step(task, make_batch()))


def test_closed_form_matches_the_flop_counter():
    config, batch = tiny_config(), make_batch((8,) * 6)
    task = build_task(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(task, batch)
    counted = sum(part.flops for part in task.passes(batch))
    counted += task.objectives["wpa"].flops(task.model, batch)
    assert counted == pytest.approx(counter.get_total_flops(), rel=2e-3)
    assert task.flops(batch) == 3 * counted


def test_only_gains_and_biases_are_exempt_from_decay():
    recipe = vilt_base().optimizer
    check_decay(build_task(tiny_config()), recipe, lambda name, _: name.endswith(("bias", "norm.weight")))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            GlobalContrastiveConfig(),
            "objectives.other reads the view 'image', but the family 'vilt' has only",
        ),
        (DinoConfig(), "reads the view 'image', but the family 'vilt' has only multimodal_masked and"),
        (MaskedTextConfig(), "objectives.other reads text batches, which this model's family"),
        (MultimodalMaskedImageConfig(), "objectives.other predicts codes of masked patches, and the family"),
    ],
)
def test_objectives_that_it_cannot_serve_are_refused(objective, message):
    config = tiny_config(objectives={"other": objective})
    with pytest.raises(ConfigError, match=message):
        config.model.check(config)
        build_task(config) if "view" in message else check_objectives(config)


@pytest.mark.parametrize("family", ["flava", "clip"])
def test_alignment_is_refused_by_families_without_it(family):
    config = dataclasses.replace(Config(name="x"), objectives={"wpa": WordPatchAlignmentConfig()})
    if family != "flava":
        from flava_ds.recipes import RECIPES

        config = dataclasses.replace(config, model=RECIPES[f"demo_{family}"]().model)
    message = f"objectives.wpa needs a model with `alignment_rows`, which the family '{family}' does not have"
    with pytest.raises(ConfigError, match=message):
        check_objectives(config)


def test_images_of_too_many_patches_are_refused():
    config = tiny_config()
    large = dataclasses.replace(config.model, image=dataclasses.replace(config.model.image, image_size=24))
    with pytest.raises(ConfigError, match="image_size 24 gives 36 patches, more than max_patches 20; lower"):
        large.check(config)
    with pytest.raises(ValueError, match="12, 32.* have 24 patches, more than model.image.max_patches 20"):
        build_task(config).model.embed_images(torch.zeros(1, 3, 12, 32, dtype=torch.uint8))
    sources = {"a": SourceConfig(kind="pair", shards="x", masked_share=0.5)}
    shared = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(
        ConfigError, match="source 'a': masked_share is for masked objectives on .* family 'vilt'"
    ):
        config.model.check(shared)


def test_dropout_of_embeddings_spares_the_modality_and_differs_between_views():
    """The published order: words and patches are dropped, then their modality is added."""
    config, p = tiny_config(), 0.3
    image = dataclasses.replace(config.model.image, hidden_dropout=p)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    model = randomize(build_task(config)).double().model
    batch = make_batch().having(sample_seeds=torch.tensor([1, -2, 3, 4]))
    same = {"matching_input_ids": batch["input_ids_masked"], "matching_cu_seqlens": batch["cu_seqlens"]}
    longest = batch.numbers["max_seqlen"]
    batch = dataclasses.replace(batch.having(**same), numbers=dict.fromkeys(batch.numbers, longest))
    read, views = [], ("multimodal_masked", "multimodal")
    model.transformer.register_forward_pre_hook(lambda _, given: read.append(given[0].hidden))
    for training in (False, True):
        model.train(training)
        model.encode(batch, views)
    plain, other, *trained = read
    assert torch.equal(plain, other), "both views read the same here"
    layout = model.layout(views[0], batch)
    words = torch.zeros(len(plain), dtype=torch.long).index_fill(
        0, layout.text_rows(torch.arange(len(batch["input_ids"]))), 1
    )
    modality = model.modality_types.weight[1 - words]
    for view, found in zip(views, trained, strict=True):
        mask = kept(model.drops(batch, view).keys, 0, p, 24)
        torch.testing.assert_close(found, (plain - modality) * mask / (1 - p) + modality)
    assert not torch.equal(*trained)
