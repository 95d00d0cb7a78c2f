"""LXMERT against transformers on random weights; of LXMERT and ViLBERT, counts of parameters and work, and
what they refuse.
"""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from families.family_checks import check_users, step
from families.two_streams.two_stream_peers import (
    OBJECTIVES,
    difference,
    inputs_of,
    labels_of,
    lxmert,
    make_batch,
    our_model,
    own_tensors,
    randomize,
    their_lxmert,
    vilbert,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError
from flava_ds.families.two_streams.config import REGIONS_VIEW, TEXT_VIEW, LxmertConfig, VilbertConfig
from flava_ds.families.two_streams.hf import LAYOUTS
from flava_ds.families.two_streams.task import TwoStreamTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.masked_image import MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig

FAMILIES = pytest.mark.parametrize("family", [lxmert, vilbert])
UNTRAINED = ("embeddings.positions.weight", "embeddings.token_types.weight")
"""Tables whose first row transformers takes for padding and gives no gradient."""


@pytest.mark.parametrize(
    ("dtype", "states", "gradients"), [(torch.float32, 1e-5, 3e-5), (torch.float64, 1e-12, 1e-12)]
)
def test_transformers_agree(dtype, states, gradients, told):
    """Both streams, the pooled CLS and the loss of all three heads; texts and regions are padded on their
    side.
    """
    config, batch = lxmert(), make_batch()
    told.parity("lxmert", "LxmertForPreTraining", dtype, states, gradients)
    theirs = their_lxmert(config).to(dtype)
    task = our_model(config, theirs)
    inputs = inputs_of(batch, dtype)
    output = theirs.lxmert(**inputs)
    found = task.model.encode(batch, [TEXT_VIEW, REGIONS_VIEW])
    mask, seen = inputs["attention_mask"].bool(), inputs["visual_attention_mask"].bool()
    assert (
        told.output(difference(found[TEXT_VIEW].last_hidden_state(), output.language_output[mask])) <= states
    )
    assert (
        told.output(difference(found[REGIONS_VIEW].last_hidden_state(), output.vision_output[seen])) <= states
    )
    assert (
        told.output(difference(task.model.pooled(found[TEXT_VIEW].first()), output.pooled_output)) <= states
    )

    expected = theirs(**inputs, **labels_of(batch, dtype)).loss
    losses = task.losses(batch)
    # theirs divides by all places, padded ones included
    shares = {"detected_regions": losses["detected_regions"].sum / seen.numel() / 0.15}
    loss = sum(shares.get(name, own.sum / own.count) for name, own in losses.items())
    assert difference(loss, expected) <= 1e-5  # theirs adds up in fp32
    loss.backward()
    expected.backward()
    grads = {name: own.grad for name, own in theirs.named_parameters()}
    other = to_ours(own_tensors(grads), LAYOUTS.entries(config.model, heads=True), "their gradients")
    ours = {name: own.grad for name, own in task.named_parameters()}
    assert ours.keys() == other.keys()
    apart = {
        name: difference(*(own[name][1:] if name.endswith(UNTRAINED) else own[name] for own in (ours, other)))
        for name in ours
    }
    told.gradients(apart, gradients)


def test_parameter_counts_are_the_published_ones():
    """Without LXMERT's heads of 9,500 answers and 400 attributes, and without the projections of ViLBERT that
    nothing reads: two in each co-attention layer, of 1024 x 1024 and 1024 x 768.
    """
    answers, attributes = 768 * 1536 + 1536 + 3072 + 1536 * 9500 + 9500, 768 * 400 + 400
    unread = 6 * (1024 * 1024 + 1024 + 1024 * 768 + 768)
    published = {lxmert: 228_051_752 - answers - attributes, vilbert: 250_044_029 - unread}
    for family, model in ((lxmert, LxmertConfig()), (vilbert, VilbertConfig())):
        with torch.device("meta"):
            task = TwoStreamTask(dataclasses.replace(family(), model=model))
        assert sum(parameter.numel() for parameter in task.parameters()) == published[family]
        if family is lxmert:
            assert sum(parameter.numel() for parameter in task.model.parameters()) == 207_936_768


@FAMILIES
def test_every_parameter_gets_a_gradient_from_the_objective_that_says_so(family):
    check_users(build_task, family(), make_batch())


@FAMILIES
def test_a_pair_is_encoded_as_if_it_were_alone(family):
    """Whatever the other samples' numbers of tokens and regions, in both streams."""
    lengths, regions = (5, 12, 2), (4, 1, 6)
    whole = make_batch(lengths, regions)
    task = randomize(build_task(family())).double()
    both = task.model.encode(whole, [TEXT_VIEW, REGIONS_VIEW])
    hidden = torch.zeros(sum(regions)).index_fill(0, whole["region_hidden_rows"], 1)
    for row in range(3):
        words, found = (
            slice(*whole[name][row : row + 2].tolist()) for name in ("cu_seqlens", "region_cu_seqlens")
        )
        alone = dataclasses.replace(
            whole.having(
                input_ids_masked=whole["input_ids_masked"][words],
                cu_seqlens=torch.tensor([0, lengths[row]]).int(),
                region_cu_seqlens=torch.tensor([0, regions[row]]).int(),
                region_features=whole["region_features"][found],
                region_boxes=whole["region_boxes"][found],
                region_hidden_rows=hidden[found].nonzero().flatten(),
            ),
            numbers={"max_seqlen": lengths[row], "region_max_seqlen": regions[row]},
        )
        single = task.model.encode(alone, [TEXT_VIEW, REGIONS_VIEW])
        for view, part in ((TEXT_VIEW, words), (REGIONS_VIEW, found)):
            torch.testing.assert_close(both[view].last_hidden_state()[part], single[view].last_hidden_state())


@FAMILIES
def test_activation_checkpointing_and_recomputed_gelu_change_no_gradient(family):
    config = family()
    training = dataclasses.replace(config.training, activation_checkpointing=True, recompute_gelu=True)
    plain, again = build_task(config), build_task(dataclasses.replace(config, training=training))
    for task in (plain, again):
        step(task, make_batch()).backward()
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@FAMILIES
@pytest.mark.parametrize("only", [None, "mmm_text"])
def test_closed_form_matches_the_flop_counter(family, only):
    config, batch = family(), make_batch((8,) * 6, (5,) * 6)
    if only:
        config = dataclasses.replace(config, objectives={only: config.objectives[only]})
    task = build_task(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(task, batch)
    assert task.flops(batch) == pytest.approx(3 * counter.get_total_flops(), rel=2e-3)


@FAMILIES
@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (GlobalContrastiveConfig(), "objectives.other reads the view 'image', but the family '.*' has only"),
        (MaskedTextConfig(), "objectives.other reads text batches, which this model's family"),
        (MultimodalMaskedImageConfig(), "objectives.other predicts codes of masked patches, and the family"),
    ],
)
def test_objectives_that_they_cannot_serve_are_refused(family, objective, message):
    config = family(objectives=OBJECTIVES | {"other": objective})
    with pytest.raises(ConfigError, match=message):
        config.model.check(config)
        build_task(config) if "view" in message else check_objectives(config)


def test_shapes_that_do_not_fit_are_refused():
    config = vilbert()
    for changes, message in (
        ({"co_attention_layers": 3}, "image.num_hidden_layers 2 is less than co_attention_layers 3"),
        ({"co_attention_heads": 5}, "co_attention_size 12 is not divisible by co_attention_heads 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(config.model, **changes).check(config)


@FAMILIES
def test_a_batch_without_a_masked_region_has_a_finite_loss(family):
    """Images of which nothing but the whole is known."""
    task, batch = build_task(family()), make_batch(regions=(1, 1, 1, 1))
    assert len(batch["region_masked_rows"]) == 0
    loss = step(task, batch)
    loss.backward()
    assert loss.isfinite() and all(own.grad.isfinite().all() for own in task.parameters())
    if family is vilbert:
        assert float(task.losses(batch)["mrc"].sum.detach()) == 0
